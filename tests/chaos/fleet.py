"""The processes under fire: start them, kill one, start it again as a supervisor would.

Everything here runs in the thread that made the fleet: Redis ends with the
thread that started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.history import Exit, Fault, FaultKind
from tests.support.processes import children_of, is_running
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.plan import PlannedFault
    from tests.support.processes import LogProcess

SLOTS = 2
ARGV = {
    "service": ["dispatch", "serve"],
    "ingress-1": ["dispatch", "ingress"],
    "ingress-2": ["dispatch", "ingress"],
    **{
        f"worker-{n}": ["celery", "-A", "dispatch", "worker", "-c", str(SLOTS), "-n", f"worker-{n}@chaos"]
        for n in (1, 2)
    },
}
READY = {"service": "service_ready", "ingress": "ingress_ready", "worker": "worker_ready"}
RESTART_PAUSE_S = 0.3
"""A process that ended by itself is started again after this; one that was killed, at once."""


@dataclass(slots=True)
class _Hit:
    """A fault, and what must be ready again for its component to be back."""

    kind: FaultKind
    at: float
    pids: frozenset[int]
    back_at: float | None = None
    process: LogProcess | None = None


class Fleet:
    """One service, two ingresses, two workers and Redis, watched by a supervisor that is this object."""

    def __init__(self) -> None:
        self.stack = Stack()
        self.exits: list[Exit] = []
        self._running: dict[str, LogProcess] = {}
        self._again_at: dict[str, float] = {}
        self._hits: list[_Hit] = []

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.stack.redis.start()
        self._launch("service").wait_event("service_ready")
        for name in ARGV:
            if name != "service":
                self._launch(name)
        for name, process in self._running.items():
            process.wait_event(_ready_event(name))

    def _launch(self, name: str) -> LogProcess:
        self._running[name] = self.stack.run(name, ARGV[name])
        return self._running[name]

    def supervise(self) -> None:
        """Start again what ended by itself, and note what has come back. Call it often."""
        now = time.time()
        for name, process in list(self._running.items()):
            if process.exit_code is None:
                continue
            if name not in self._again_at:
                self.exits.append(Exit(name, process.exit_code, now))
                self._again_at[name] = now + RESTART_PAUSE_S
            elif now >= self._again_at[name]:
                del self._again_at[name]
                self._launch(name)
        for hit in self._hits:
            if hit.back_at is None and hit.process is not None and _is_ready(hit.process):
                hit.back_at = time.time()

    def all_ready(self) -> bool:
        """Say whether every process is up and ready."""
        return all(process.exit_code is None and _is_ready(process) for process in self._running.values())

    def hit(self, planned: PlannedFault) -> bool:
        """Do the fault; False when there is nothing of its kind that could be killed now."""
        if planned.kind is FaultKind.REDIS:
            at = time.time()
            self.stack.redis.kill()
            time.sleep(planned.down_s)
            self.stack.redis.start()
            self._hits.append(_Hit(planned.kind, at, frozenset(), time.time()))
            return True
        if planned.kind is FaultKind.POOL_CHILD:
            return self._kill_pool_child(planned)
        names = self._ready(planned.kind.value)
        if not names:
            return False
        name = _pick(names, planned.choice)
        victim = self._running[name]
        pids = frozenset(pool_children(victim)) if planned.kind is FaultKind.WORKER else frozenset()
        at = time.time()
        victim.kill()
        self._hits.append(_Hit(planned.kind, at, pids, process=self._launch(name)))
        return True

    def _kill_pool_child(self, planned: PlannedFault) -> bool:
        """Kill one that has something to do, if any has."""
        everybody = [pid for name in self._ready("worker") for pid in pool_children(self._running[name])]
        candidates = [pid for pid in everybody if children_of(pid)] or everybody
        while candidates:
            pid = _pick(candidates, planned.choice)
            at = time.time()
            with contextlib.suppress(ProcessLookupError):
                if is_running(pid):
                    os.kill(pid, signal.SIGKILL)
                    self._hits.append(_Hit(planned.kind, at, frozenset({pid}), at))
                    return True
            candidates.remove(pid)
        return False

    def _ready(self, kind: str) -> list[str]:
        return [
            name for name, p in self._running.items() if name.startswith(kind) and p.exit_code is None and _is_ready(p)
        ]

    def faults(self) -> tuple[Fault, ...]:
        """Return what was done so far, without the victims: those are read from what the children wrote."""
        return tuple(Fault(hit.kind, hit.at, pids=hit.pids, back_at=hit.back_at) for hit in self._hits)


def pool_children(worker: LogProcess) -> list[int]:
    """Return the pids of a worker's pool children (its warden is a child as well)."""
    found = []
    for pid in children_of(worker.pid):
        with contextlib.suppress(OSError):
            if b"dispatch.runner.warden" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _ready_event(name: str) -> str:
    return READY[name.partition("-")[0]]


def _is_ready(process: LogProcess) -> bool:
    return bool(process.find(_ready_event(process.name)))


def _pick(items: Sequence, choice: float):
    return items[int(choice * len(items))]
