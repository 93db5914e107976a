"""Claims on a foreign ATS, which knows no fencing tokens: tokens and counts live in Redis.

The counterpart of ``dispatch.ats.plain``, with the same keys
(``dispatch.ats.fences``) and the same limits: best effort, and said so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from dispatch.ats import fences, protocol
from dispatch.ats.gateway import AttemptRef
from dispatch.ats.model import parse_task
from dispatch.errors import GatewayRejectedError, GatewayUnavailableError, UnknownTaskError
from dispatch.ingress.claims import Claim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import redis.asyncio

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Actor, Task

_READS_AT_ONCE = 8


class PlainClaims:
    """Claims without tokens of the service."""

    offered: Mapping[str, str] = MappingProxyType({})

    def __init__(self, client: AsyncClient, redis: redis.asyncio.Redis, actor: Actor, lease_s: float) -> None:
        self._client = client
        self._redis = redis
        self._actor = actor
        self._lease_s = lease_s
        self._url = client.endpoint.base_url
        self.in_hand: set[str] = set()

    async def claim(self, task_ids: Sequence[str]) -> list[Claim | GatewayRejectedError]:
        """Claim one by one. A task that waits out a backoff is refused as NOT_READY."""
        return list(await asyncio.gather(*(self._try(task_id) for task_id in task_ids)))

    async def _try(self, task_id: str) -> Claim | GatewayRejectedError:
        try:
            return await self._claim(task_id)
        except GatewayRejectedError as refusal:
            return refusal

    async def _claim(self, task_id: str) -> Claim:
        """Claim, then take the next token."""
        try:
            wait_ms = await self._redis.pttl(fences.not_before_key(self._url, task_id))
            if wait_ms > 0:
                raise GatewayRejectedError(
                    f"Task {task_id} waits before its next attempt.",
                    status=409,
                    code="NOT_READY",
                    facts={"retry_after_ms": wait_ms},
                )
            sent_at = time.monotonic()
            task = parse_task(await self._client.send(protocol.claim(task_id, lease_s=self._lease_s)), keep_raw=False)
            if task.assignee_id not in (None, self._actor.id):
                raise GatewayRejectedError(f"Task {task_id} is held by {task.assignee_id}.", status=409)
            token, attempts = await self._count(task_id)
        except (RedisError, OSError) as exc:
            # A claim that was granted all the same runs out by its lease.
            raise GatewayUnavailableError(
                f"Redis, which fences tasks of this service, gave no answer: {type(exc).__name__}."
            ) from exc
        task = replace(task, id=task_id, fencing_token=token, attempts=attempts)
        return Claim(AttemptRef(task_id, attempts + 1, token, self._actor.id), task, sent_at, self._lease_s)

    async def _count(self, task_id: str) -> tuple[int, int]:
        """Return the next token, and how many attempts of the task have counted."""
        key = fences.token_key(self._url, task_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(key, fences.first_token(), nx=True)
            pipe.incr(key)
            pipe.expire(key, fences.KEEP_S)
            pipe.get(fences.attempts_key(self._url, task_id))
            _, token, _, attempts = await pipe.execute()
        return int(token), int(attempts or 0)

    async def renew(self, ref: AttemptRef) -> float:
        """Claim again; where that is refused, the task itself says whether it is still ours."""
        try:
            await self._client.send(protocol.claim(ref.task_id, lease_s=self._lease_s))
        except GatewayRejectedError:
            task = await self._read(ref.task_id)
            if task is None or task.status != "in_progress" or task.assignee_id != self._actor.id:
                raise
        return self._lease_s

    async def release(self, ref: AttemptRef, *, reason: str) -> None:  # noqa: ARG002 - the plain protocol has no place for it
        """Bring the task back to pending; where that is refused its lease runs out."""
        await self._client.send(protocol.patch(ref.task_id, status="pending"))

    async def fail(self, ref: AttemptRef, reason: str) -> None:
        """Fail the task."""
        await self._client.send(protocol.fail(ref.task_id, reason))
        with contextlib.suppress(RedisError, OSError):
            await self._redis.delete(fences.attempts_key(self._url, ref.task_id))

    async def complete(self, ref: AttemptRef, outputs: Sequence[Any]) -> None:
        """Complete the task."""
        await self._client.send(protocol.complete(ref.task_id, outputs))
        with contextlib.suppress(RedisError, OSError):
            await self._redis.delete(fences.attempts_key(self._url, ref.task_id))

    async def last_reason(self, task_id: str) -> str:  # noqa: ARG002 - the plain protocol does not tell
        """Return nothing."""
        return ""

    async def refresh(self, refs: Sequence[AttemptRef]) -> dict[str, Task]:
        """Read the tasks one by one, and from Redis who started them."""
        limit = asyncio.Semaphore(_READS_AT_ONCE)

        async def one(ref: AttemptRef) -> Task | None:
            async with limit:
                task = await self._read(ref.task_id)
                key = fences.start_key(self._url, ref.task_id, ref.token)
                runner = await self._redis.get(key)
                token = await self._redis.get(fences.token_key(self._url, ref.task_id))
                if task is None:
                    return None
                return replace(
                    task,
                    id=ref.task_id,
                    runner=str(runner) if runner else None,
                    # A higher one means that we have claimed again since; a lost one proves nothing.
                    fencing_token=int(token) if token else None,
                )

        found = await asyncio.gather(*(one(ref) for ref in refs))
        return {task.id: task for task in found if task is not None}

    async def _read(self, task_id: str) -> Task | None:
        try:
            return parse_task(await self._client.send(protocol.get(task_id)), keep_raw=False)
        except UnknownTaskError:
            return None
