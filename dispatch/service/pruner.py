"""Removes what is kept no longer, a little at a time, for as long as the service runs.

Every step is one of the writer's jobs, and the writer is left to others for
four times as long as the step took. Of several services on one database one
prunes at a time; if it dies, another does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Final

from dispatch import metrics
from dispatch.asynchronous import cancel_all
from dispatch.core.retention import pause_s
from dispatch.errors import OverloadedError
from dispatch.log import get_logger
from dispatch.service import pruning
from dispatch.service.retention import STEPS

if TYPE_CHECKING:
    from dispatch.core.retention import Retention
    from dispatch.service.pruning import Step
    from dispatch.service.store import Store, Tx

_FIRST_S: Final = 10.0
"""Whoever starts a service wants it to serve first."""
EVERY_S: Final = 600.0
_TURN_MS: Final = 60_000
"""How long a service that is in the middle of it, and does not go on, keeps the others from it."""
_log: Final = get_logger("service")


class Pruner:
    """Goes through all kinds of rows again and again until it is closed."""

    def __init__(self, store: Store, retention: Retention, *, first_s: float = _FIRST_S) -> None:
        self._store = store
        self._retention = retention
        self._first_s = first_s
        self._process = str(uuid.uuid4())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless everything is kept for ever."""
        if any(self._retention.limits(0)):
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop. A step that is under way is finished by the store."""
        if self._task is not None:
            await cancel_all([self._task])

    async def _run(self) -> None:
        wait_s = self._first_s
        while True:
            await asyncio.sleep(wait_s)
            wait_s = EVERY_S
            # The store has logged why it cannot do it now. What is old stays old.
            with contextlib.suppress(OverloadedError):
                await self.go_through()

    async def go_through(self) -> Counter[str] | None:
        """Remove everything that is old now; return how many of each kind, None if it is another service's turn.

        Raises OverloadedError.
        """
        began = time.monotonic()
        removed: Counter[str] = Counter()
        for kind, before_ms in self._retention.limits(self._store.clock.now_ms()):
            try:
                if not await self._remove(kind, before_ms, removed):
                    return None
            except OverloadedError:
                raise
            except Exception:  # noqa: BLE001 - a mistake with one kind must not let the others fill the disk
                _log.exception("removal_failed", kind=kind)
        await self._store.write(lambda tx: pruning.take_turn(tx, self._process, for_ms=round(EVERY_S * 1000)))
        if removed:
            _log.info("old_rows_removed", removed=dict(removed), took_s=round(time.monotonic() - began, 1))
        return removed

    async def _remove(self, kind: str, before_ms: int, removed: Counter[str]) -> bool:
        """Remove one kind of rows; False if it is another service's turn."""
        more = True
        while more:
            began = time.monotonic()
            step = await self._store.write(lambda tx: self._step(tx, kind, before_ms))
            if step is None:
                return False
            if step.removed:
                removed[kind] += step.removed
                metrics.count("dispatch_removed_total", step.removed, kind=kind)
            if more := step.more:
                await asyncio.sleep(pause_s(time.monotonic() - began))
        return True

    def _step(self, tx: Tx, kind: str, before_ms: int) -> Step | None:
        if self._store.is_shared and not pruning.take_turn(tx, self._process, for_ms=_TURN_MS):
            return None
        return STEPS[kind](tx, before_ms)
