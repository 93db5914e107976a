"""Bounds that the product promises, held on a machine with more work than processors as well.

A wait for what comes at once costs nothing however long it may take, so ``eventually`` is patient. A bound that is
the fact under test ("dead within a second") is written as ``with promised(1.0, "the end of the tree"):``.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAUSE_S = 0.01
_PROCESSORS = os.cpu_count() or 1


def crowding() -> float:
    """Return how many processes want each processor at this moment, whoever asks left out; at least 1."""
    running = int(Path("/proc/loadavg").read_text("ascii").split()[3].partition("/")[0])
    return max(1.0, (running - 1) / _PROCESSORS)


class FairClock:
    """A context manager that counts the seconds which an idle machine would have needed for its block.

    A moment in which n processes want each processor counts an n-th, and one in
    which this process was not let run at all counts no more than the pause it
    had asked for: the product got no further then either.
    """

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.slowness = 1.0
        """How many times as long everything took; for who has only times of the clock on the wall. Set at the end."""
        self._began = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._count, name="fair clock", daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.slowness = max(1.0, (time.monotonic() - self._began) / self.passed_s)

    def _count(self) -> None:
        before = self._began
        while True:
            is_over = self._is_over.wait(_PAUSE_S)
            now = time.monotonic()
            self.passed_s += min(now - before, 2 * _PAUSE_S) / crowding()
            before = now
            if is_over:
                return


@contextmanager
def promised(within_s: float, what: str) -> Iterator[None]:
    """Fail unless the block takes at most so long by a fair clock. Inside, wait with the usual patience."""
    with FairClock() as clock:
        yield
    took = f"{clock.passed_s:.2f} s by a fair clock, {clock.passed_s * clock.slowness:.2f} s in all"
    assert clock.passed_s <= within_s, f"{what} took {took}, not {within_s:g} s"
