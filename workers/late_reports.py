"""Reports that attempts left on disk, delivered while the worker runs, from a thread of its own.

It holds no slot and no attempt. Reports carry the fencing token of their
attempt, so that one that comes too late changes nothing.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from dispatch.core.lease import late_report_pause_s
from dispatch.runner import spool

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.gateway import TaskGateway


def deliver_late(
    gateway: TaskGateway, store: spool.Spool, *, lease_s: float, is_over: Callable[[], bool], log: Any
) -> None:
    """Try what lies in the spool at once, and again and again until ``is_over``."""
    while not is_over():
        try:
            if store.waiting():
                spool.replay(gateway, store, rand=random.random, log=log)
        except Exception:
            # The next round tries again; without this thread nobody would.
            log.exception("late_reports_failed")
        time.sleep(late_report_pause_s(lease_s, random.random()))  # noqa: S311  Spreads load; not a secret.
