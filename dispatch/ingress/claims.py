"""What the ingress asks of the task service about its claims.

``FencedClaims`` is for services with fencing tokens (ours). ``dispatch.ingress.plain_claims``
does the same for a foreign ATS.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from dispatch.ats import answers, protocol
from dispatch.ats.gateway import AttemptRef
from dispatch.ats.model import Actor, Task, parse_task
from dispatch.errors import GatewayRejectedError, GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dispatch.ats.aclient import AsyncClient

LIST_FIELDS = (
    "id,title,channel,type,priority,status,fencing_token,attempts,lease_losses,not_before,runner,assignee_id,"
    "updated_at,traits"
)
_CLAIM_TRIES = 2


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that succeeded. ``sent_at`` is monotonic: the lease is counted from there."""

    ref: AttemptRef
    task: Task
    sent_at: float
    lease_s: float


class Claims(Protocol):
    """Calls of the ingress. All raise the GatewayError family."""

    offered: Mapping[str, str]
    """What a list asks for besides the status, to see only what may be claimed."""
    in_hand: set[str]
    """Tasks that whoever claims them ends at once: they are not for the queue."""

    async def claim(self, task_ids: Sequence[str]) -> list[Claim | GatewayRejectedError]:
        """Try to claim pending tasks, one answer each, in order.

        A refusal means that somebody else was faster, or that the task may not be
        claimed (code NOT_READY: not yet).
        """
        ...

    async def renew(self, ref: AttemptRef) -> float:
        """Extend the lease of a claim that still waits in the queue; returns its length in seconds."""
        ...

    async def release(self, ref: AttemptRef, *, reason: str) -> None:
        """Give a claim back that no worker has started."""
        ...

    async def fail(self, ref: AttemptRef, reason: str) -> None:
        """Fail a claimed task for good."""
        ...

    async def complete(self, ref: AttemptRef, outputs: Sequence[Any]) -> None:
        """Complete a claimed task that no worker is to run."""
        ...

    async def last_reason(self, task_id: str) -> str:
        """Return why the task failed or was released last, "" when nobody said."""
        ...

    async def refresh(self, refs: Sequence[AttemptRef]) -> dict[str, Task]:
        """Return the present state of these tasks by id; ``runner`` is set once a worker has started one."""
        ...


class FencedClaims:
    """Claims on a service that announces the fencing extension."""

    offered: Mapping[str, str] = MappingProxyType({"claimable": "true"})

    def __init__(self, client: AsyncClient, actor: Actor, lease_s: float) -> None:
        self._client = client
        self._actor = actor
        self._lease_s = lease_s
        self.in_hand: set[str] = set()

    async def claim(self, task_ids: Sequence[str]) -> list[Claim | GatewayRejectedError]:
        """Claim with a claim id of its own, so that a lost answer can be asked for again."""
        request = protocol.claim_many(
            [int(task_id) for task_id in task_ids], lease_s=self._lease_s, claim_id=uuid4().hex
        )
        for tries_left in reversed(range(_CLAIM_TRIES)):
            sent_at = time.monotonic()
            try:
                answer = await self._client.send(request)
                break
            except GatewayUnavailableError:
                if not tries_left:
                    raise
        rows = answer.get("claims") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or len(rows) != len(task_ids):
            raise GatewayUnavailableError("The task service answered something that is not a list of claims.")
        return [self._result(row, sent_at) for row in rows]

    def _result(self, row: Any, sent_at: float) -> Claim | GatewayRejectedError:
        if not isinstance(row, dict) or "task" not in row:
            facts = row if isinstance(row, dict) else {}
            return GatewayRejectedError(
                str(facts.get("error", "")), status=409, code=str(facts.get("code", "")), facts=facts
            )
        task = parse_task(row, keep_raw=False)
        if task.fencing_token is None:
            raise GatewayUnavailableError("The task service granted a claim without a fencing token.")
        ref = AttemptRef(task.id, task.attempts + 1, task.fencing_token, self._actor.id)
        return Claim(ref, task, sent_at, self._lease_s)

    async def renew(self, ref: AttemptRef) -> float:
        """Renew by token."""
        await self._client.send(protocol.renew(ref.task_id, token=ref.token, lease_s=self._lease_s))
        return self._lease_s

    async def release(self, ref: AttemptRef, *, reason: str) -> None:
        """Release by token, uncounted."""
        await self._client.send(protocol.release(ref.task_id, token=ref.token, reason=reason))

    async def fail(self, ref: AttemptRef, reason: str) -> None:
        """Fail by token."""
        await self._client.send(protocol.fail(ref.task_id, reason, token=ref.token))

    async def complete(self, ref: AttemptRef, outputs: Sequence[Any]) -> None:
        """Complete by token."""
        await self._client.send(protocol.complete(ref.task_id, outputs, token=ref.token))

    async def last_reason(self, task_id: str) -> str:
        """Ask the task."""
        return parse_task(await self._client.send(protocol.get(task_id)), keep_raw=False).reason or ""

    async def refresh(self, refs: Sequence[AttemptRef]) -> dict[str, Task]:
        """Ask for all of them at once."""
        answer = await self._client.send(
            protocol.list_tasks(ids=[ref.task_id for ref in refs], fields=LIST_FIELDS, limit=len(refs))
        )
        return {task.id: task for task in answers.tasks_of(answer)}
