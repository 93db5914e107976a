"""A fleet that the tests of a file hand on to each other: to start and stop one takes longer than most of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from tests.support.processes import eventually, processes_with
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.processes import LogProcess

UNFINISHED = "SELECT id FROM tasks WHERE status NOT IN ('completed', 'failed', 'cancelled', 'skipped')"


class Standing:
    """One stack at a time, started when it is first taken.

    Each test calls ``take`` for it, and after it ``give_back``, or ``discard``
    if it failed. At the end ``close`` stops everything and looks for leftovers.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._stack: Stack | None = None

    def take(self, slots: int = 2) -> Stack:
        """Return it whole and idle: Redis, and as ``processes`` a service, an ingress, a worker with so many slots.

        What a test killed is started again; what the processes logged before is forgotten.
        """
        if self._stack is None:
            self._stack = Stack(self._settings)
            self._stack.start(slots)
        else:
            _mend(self._stack, slots)
        for process in self._stack.processes:
            process.forget()
        return self._stack

    def give_back(self) -> None:
        """Let the next test have it: what still runs is cancelled, and must be gone soon."""
        if self._stack is None:
            return
        with closing(sqlite3.connect(self._stack.directory / "data" / "tasks.db", timeout=60)) as database:
            unfinished = [ident for (ident,) in database.execute(UNFINISHED)]
        for ident in unfinished:
            self._stack.call("POST", f"/tasks/{ident}/cancel")
        mark = f"ATS_URL={self._stack.url}"
        eventually(lambda: not processes_with(mark), f"the end of {processes_with(mark)}")

    def discard(self) -> None:
        """Show the logs and kill everything: the next test gets a new one."""
        if self._stack is not None:
            print(self._stack.report())
            self._stack.abort()
            self._stack = None

    def close(self) -> None:
        """Stop it in good order; fails if a process or a port is left over."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()


def _mend(stack: Stack, slots: int) -> None:
    """Leave the newest of each kind, if it is alive and right; start what is missing."""
    stack.redis.start()
    alive = [process for process in stack.processes if process.exit_code is None]
    kept = {process.name: process for process in alive}
    if "worker" in kept and _slots(kept["worker"]) != slots:
        del kept["worker"]
    surplus = [process for process in alive if process not in kept.values()]
    for process in surplus:
        process.ask()
    for process in surplus:
        process.stop()
    service = kept.get("service") or stack.start_service()
    ingress = kept.get("ingress") or stack.start_ingress()
    worker = kept.get("worker") or stack.start_worker(slots)
    stack.processes[:] = [service, ingress, worker]


def _slots(worker: LogProcess) -> int:
    return int(worker.argv[worker.argv.index("-c") + 1])
