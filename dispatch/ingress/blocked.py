"""Failing tasks whose dependencies ended badly, and passing the failure on to what is behind them."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.exceptions import RedisError

from dispatch.ats import protocol
from dispatch.core.graph import blocked_reason
from dispatch.errors import GatewayError, GatewayRejectedError, GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Task
    from dispatch.ingress.claims import Claims
    from dispatch.ingress.registry import Registry

_CALLS_AT_ONCE: Final = 8
_PAUSE_S: Final = 0.5


class Failing(Protocol):
    """How tasks that wait are failed."""

    @property
    def at_once(self) -> int:
        """How many tasks one call may name."""
        ...

    async def __call__(self, reasons: dict[str, str]) -> dict[str, GatewayRejectedError | None]:
        """Fail tasks, by id, for these reasons; a refusal for those that were not. Raises GatewayUnavailableError."""
        ...


class BulkFailing:
    """Fails many waiting tasks in one call, without a claim: our own service."""

    at_once: Final = protocol.FAILURES_MAX

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def __call__(self, reasons: dict[str, str]) -> dict[str, GatewayRejectedError | None]:
        """Do as the protocol says."""
        rows: Any = await self._client.send(
            protocol.fail_many([(int(ident), reason) for ident, reason in reasons.items()])
        )
        rows = rows.get("results") if isinstance(rows, dict) else None
        if not isinstance(rows, list) or len(rows) != len(reasons):
            raise GatewayUnavailableError("The task service answered something that is not a list of results.")
        return {task_id: _refusal(row) for task_id, row in zip(reasons, rows, strict=True)}


class ClaimedFailing:
    """Claims each task and fails it: a foreign ATS, and sealed tasks.

    ``still_needs(task)`` says whether a task, as the claim shows it, needs what it was to be failed for.
    """

    at_once: Final = 100

    def __init__(self, claims: Claims, *, still_needs: Callable[[Task], bool]) -> None:
        self._claims = claims
        self._still_needs = still_needs
        self._limit = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def __call__(self, reasons: dict[str, str]) -> dict[str, GatewayRejectedError | None]:
        """Do as the protocol says."""
        found = await asyncio.gather(*(self._fail(*item) for item in reasons.items()))
        return dict(zip(reasons, found, strict=True))

    async def _fail(self, task_id: str, reason: str) -> GatewayRejectedError | None:
        async with self._limit:
            self._claims.in_hand.add(task_id)
            try:
                return await self._claim_and_fail(task_id, reason)
            finally:
                self._claims.in_hand.discard(task_id)

    async def _claim_and_fail(self, task_id: str, reason: str) -> GatewayRejectedError | None:
        (claim,) = await self._claims.claim([task_id])
        if isinstance(claim, GatewayRejectedError):
            return claim
        try:
            if not self._still_needs(claim.task):
                await self._claims.release(claim.ref, reason="What the task needs has changed.")
                return GatewayRejectedError(f"What task {task_id} needs has changed.", status=409)
            await self._claims.fail(claim.ref, reason)
        except GatewayRejectedError as refusal:
            return refusal
        return None


class SealedFailing:
    """Fails in one call what our own service knows to be doomed, and after a claim what only we can see: sealed tasks.

    ``hidden`` are the ids of these.
    """

    at_once: Final = BulkFailing.at_once

    def __init__(self, bulk: BulkFailing, claimed: ClaimedFailing, hidden: Container[str]) -> None:
        self._bulk = bulk
        self._claimed = claimed
        self._hidden = hidden

    async def __call__(self, reasons: dict[str, str]) -> dict[str, GatewayRejectedError | None]:
        """Do as the protocol says."""
        answers = await self._bulk(reasons)
        refused = {ident: reasons[ident] for ident, refusal in answers.items() if refusal and ident in self._hidden}
        return answers | (await self._claimed(refused)) if refused else answers


class Blocked:
    """Fails what ``add`` names, in order.

    ``failed(task id)`` hears of each that was failed, ``refused(task id)`` of the others.
    """

    def __init__(
        self,
        registry: Registry,
        failing: Failing,
        *,
        failed: Callable[[str], None],
        refused: Callable[[str], None],
        log: Any,
    ) -> None:
        self._registry = registry
        self._failing = failing
        self._failed = failed
        self._refused = refused
        self._log = log
        self._todo: dict[str, tuple[str, str]] = {}
        self._news = asyncio.Event()

    def add(self, task_id: str, *, reason: str = "", round_: str = "") -> None:
        """Note a task to be failed: for ``reason``, or for what the registry says of its dependencies."""
        self._todo.setdefault(task_id, (reason, round_))
        self._news.set()

    def __len__(self) -> int:
        return len(self._todo)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._todo

    async def run(self) -> None:
        """Fail until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._todo:
                batch = dict(islice(self._todo.items(), self._failing.at_once))
                try:
                    await self._fail(batch)
                except (RedisError, OSError, GatewayError) as exc:
                    self._log.warning("blocked_not_failed", tasks=len(batch), reason=str(exc) or type(exc).__name__)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                for task_id, noted in batch.items():
                    if self._todo.get(task_id) == noted:
                        del self._todo[task_id]

    async def _fail(self, batch: dict[str, tuple[str, str]]) -> None:
        reasons = {}
        for task_id, (reason, round_) in batch.items():
            if reason:
                reasons[task_id] = reason
            elif outcomes := await self._registry.outcomes(task_id, round_):
                reasons[task_id] = blocked_reason(outcomes)
        if not reasons:
            return
        for task_id, refusal in (await self._failing(reasons)).items():
            if refusal is None:
                self._log.warning("task_blocked", task=task_id, reason=reasons[task_id])
                self._failed(task_id)
            else:
                # Somebody else was faster, or its dependencies are others now: the service decides.
                self._log.info("blocked_refused", task=task_id, code=refusal.code, reason=str(refusal))
                self._refused(task_id)


def _refusal(row: Any) -> GatewayRejectedError | None:
    if isinstance(row, dict) and "error" not in row:
        return None
    facts = row if isinstance(row, dict) else {}
    return GatewayRejectedError(str(facts.get("error", "")), status=409, code=str(facts.get("code", "")), facts=facts)
