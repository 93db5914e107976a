"""What it costs to start a command that has limits, beside one that has none."""

from __future__ import annotations

import os
import statistics
import time

from dispatch.core.limits import Allowance, Limit
from dispatch.log import get_logger
from dispatch.runner import limits, process
from dispatch.runner.limits import Holder
from dispatch.runner.owner import Owner

_LIMITED = Allowance(Limit(1 << 29, "attempt_memory_bytes_max"), Limit(64, "attempt_processes_max"))


def _median_ms(holder: Holder, allowance: Allowance, count: int) -> float:
    log, who, found = get_logger("bench"), Owner.current(), []
    for _ in range(count):
        began = time.perf_counter()
        with holder.hold(allowance, who, log) as bounds:
            child = process.spawn(
                ["/bin/true"], prompt=b"", cwd="/", env={"PATH": os.environ["PATH"]}, doors=bounds.doors
            )
            child.popen.wait()
            child.close()
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


def measure(count: int) -> dict[str, float | str]:
    """Start and wait, without limits and with the strongest that this machine holds."""
    holder = limits.set_up(_LIMITED.controllers(), "auto", get_logger("bench"))
    return {
        "limits": str(holder.mechanism),
        "unlimited_start_ms": _median_ms(Holder(), Allowance(), count),
        "limited_start_ms": _median_ms(holder, _LIMITED, count),
    }
