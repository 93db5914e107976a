"""The gateway to a foreign ATS, which knows neither tokens nor renewal nor release. Best effort, and said so.

What stands in for fencing: a token counted in Redis, a start that succeeds
once per token, and a look at the task (still in progress, ours, lease in the
future) before everything that changes it. Between that look and the change a
window remains; only a service with fencing tokens can close it. Redis may lose
who started what, so each start leaves a mark on the task's thread and looks for
such marks first.

Renewing means claiming again. Some services extend the lease, others refuse
and leave it as it is; both are handled. What the task looks like decides, not
the text of a refusal.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch.ats import answers, fences, marks, protocol
from dispatch.ats.model import Actor, Grant, Task, parse_task
from dispatch.core import results
from dispatch.errors import GatewayRejectedError, GatewayUnavailableError, LeaseLostError, SealReplayedError
from dispatch.log import get_logger

if TYPE_CHECKING:
    from redis import Redis

    from dispatch.ats.client import Client
    from dispatch.ats.gateway import AttemptRef

_SHORT_LEASE_S: Final = 1.0
_START_KEEP_S: Final = 7 * 24 * 3600
_RESULTS_MAX: Final = 16
"""How many dependencies are read for an attempt."""
_RELEASED: Final = "-"
"""Stands in the place of the runner's name once its attempt was given back."""
_log = get_logger("ats")


class PlainGateway:
    """A TaskGateway over the plain protocol and Redis.

    ``lease_s`` is asked for at every renewal. A service that does not extend
    leases is reported once in the log.
    """

    def __init__(self, client: Client, redis: Redis, *, lease_s: float, actor_name: str = "dispatch") -> None:
        self._client = client
        self._redis = redis
        self._lease_s = lease_s
        self._actor_name = actor_name
        self._url = client.endpoint.base_url
        self._warned = False

    def start(self, ref: AttemptRef, *, runner: str, message: str) -> Grant:
        """Begin the attempt. A second start with the same token and runner is answered alike, another is refused."""
        key = fences.start_key(self._url, ref.task_id, ref.token)
        attempts_key = fences.attempts_key(self._url, ref.task_id)
        task = self._held(ref)
        marked = self._marked(ref, task)
        first = runner if runner in marked else next(iter(marked), runner)
        try:
            self._check_token(ref)
            is_new = self._redis.set(key, first, nx=True, ex=_START_KEEP_S)
            if first != runner:
                raise _lost(f"Task {ref.task_id} was started by another worker already, says its thread.", task.status)
            if is_new:
                attempts = int(self._redis.incr(attempts_key))
                self._redis.expire(attempts_key, fences.KEEP_S)
            elif _word(self._redis.get(key)) == runner:
                attempts = int(_word(self._redis.get(attempts_key)) or 1)
            else:
                raise _lost(f"Task {ref.task_id} was started by another worker already.", task.status)
        except RedisError as exc:
            raise _away(exc) from exc
        self._post(ref, *([message] if message else []), marks.mark_of(ref.token, runner))
        return replace(self._grant(replace(task, attempts=attempts)), dependencies=self._results(ref, task))

    def _marked(self, ref: AttemptRef, task: Task) -> list[str]:
        """Return who has begun this attempt by the task's thread; a thread that cannot be read shows nobody."""
        thread = (task.raw or {}).get("messages")
        if not isinstance(thread, list):
            try:
                thread = answers.messages_of(self._send(ref, protocol.list_messages(ref.task_id)))
            except (GatewayRejectedError, GatewayUnavailableError):
                return []
        return marks.runners_in(thread, ref.token)

    def _results(self, ref: AttemptRef, task: Task) -> tuple[dict[str, Any], ...]:
        """Read what the task depends on; what cannot be read now is left out, because the attempt is worth more."""
        found = []
        for ident in task.depends_on[:_RESULTS_MAX]:
            try:
                one = parse_task(self._send(ref, protocol.get(ident)))
            except (GatewayRejectedError, GatewayUnavailableError):
                continue
            found.append({"id": one.id, "title": one.title, "status": one.status, "outputs": one.outputs})
        return tuple(results.bounded(found))

    def renew(self, ref: AttemptRef, *, message: str | None = None) -> Grant:
        """Extend the lease by claiming again, or find out how long it still lasts. A lapsed lease is not taken anew."""
        with contextlib.suppress(RedisError):
            self._check_token(ref)
        # Claiming would take a task anew that is ours no longer, so look first. What the answer to a claim shows
        # differs between services, so look again afterwards.
        before = self._held(ref).lease_expires_at
        with contextlib.suppress(GatewayRejectedError):
            self._send(ref, protocol.claim(ref.task_id, lease_s=self._lease_s))
        task = self._held(ref)
        if task.lease_expires_at == before:
            self._warn_once()
        if message:
            self._post(ref, message)
        return self._grant(task)

    def complete(self, ref: AttemptRef, outputs: list[Any], *, review: bool = False) -> None:
        """Report success, after a look at the task. There is no review here: it completes at once."""
        if review:
            _log.warning(
                "review_not_possible", task=ref.task_id, advice="This service has no review: the task is completed now."
            )
        if self._is_done(ref, "completed", outputs):
            return
        self._finish(ref, protocol.complete(ref.task_id, outputs), "completed", outputs)

    def fail(self, ref: AttemptRef, reason: str) -> None:
        """Report the final failure, after a look at the task."""
        if self._is_done(ref, "failed", None):
            return
        self._finish(ref, protocol.fail(ref.task_id, reason), "failed", None)

    def seen(self, ref: AttemptRef, digest: str) -> None:
        """Note in Redis that a sealed message is the content of the task. What Redis forgets may come a second time."""
        whose = f"{fences.service_key(self._url)}:{ref.task_id}"
        try:
            self._check_token(ref)
            key = fences.sealed_key(digest)
            if self._redis.set(key, whose, nx=True) or _word(self._redis.get(key)) == whose:
                return
        except RedisError as exc:
            raise _away(exc) from exc
        raise SealReplayedError(
            f"The sealed message of task {ref.task_id} came in another task before.", status=409, code="SEAL_REPLAYED"
        )

    def read(self, task_id: str) -> Task:
        """Return a task as it is now."""
        return parse_task(self._client.send(protocol.get(task_id)))

    def say(self, ref: AttemptRef, text: str, meta: dict[str, Any] | None = None) -> str:  # noqa: ARG002
        """Append a text to the task's thread, after a look at the task; there is no place for facts."""
        self._held(ref)
        return answers.message_id_of(self._send(ref, protocol.post_message(ref.task_id, text)))

    def was_said(self, ref: AttemptRef, text: str, *, after: str) -> bool:
        """Look for a text at the end of the thread."""
        thread = self._send(ref, protocol.list_messages(ref.task_id))
        return answers.was_said(answers.messages_of(thread), text, after=after)

    def release(self, ref: AttemptRef, *, counted: bool, delay_s: float, reason: str) -> None:
        """Bring the task back to pending, or let its lease run out at once where the service refuses that."""
        self._held(ref)
        with contextlib.suppress(RedisError):
            self._check_token(ref)
            key = fences.start_key(self._url, ref.task_id, ref.token)
            started = _word(self._redis.set(key, _RELEASED, xx=True, keepttl=True, get=True))
            if started not in ("", _RELEASED) and not counted:
                self._redis.decr(fences.attempts_key(self._url, ref.task_id))
            if delay_s > 0:
                wait_key = fences.not_before_key(self._url, ref.task_id)
                self._redis.set(wait_key, "1", px=max(int(delay_s * 1000), 1))
        if reason:
            self._post(ref, reason)
        with contextlib.suppress(GatewayRejectedError):
            self._send(ref, protocol.patch(ref.task_id, status="pending"))
        if not self._is_mine(ref, self._read(ref)):
            return
        # Refused: with a very short lease the service brings the task back by itself.
        with contextlib.suppress(GatewayRejectedError):
            self._send(ref, protocol.claim(ref.task_id, lease_s=_SHORT_LEASE_S))

    def _finish(self, ref: AttemptRef, request: protocol.Request, status: str, outputs: list[Any] | None) -> None:
        try:
            self._send(ref, request)
        except GatewayRejectedError as exc:
            if self._is_done(ref, status, outputs):
                return
            if exc.status == 409:
                raise _lost(str(exc), "") from exc
            raise
        self._forget(ref)

    def _is_done(self, ref: AttemptRef, status: str, outputs: list[Any] | None) -> bool:
        """Say whether this very report has been accepted before; else check that the task is still ours."""
        with contextlib.suppress(RedisError):
            self._check_token(ref)
        task = self._read(ref)
        is_ours = task.status == status and task.assignee_id in (ref.actor_id, None)
        if is_ours and (outputs is None or task.outputs == outputs):
            self._forget(ref)
            return True
        self._checked(ref, task)
        return False

    def _forget(self, ref: AttemptRef) -> None:
        with contextlib.suppress(RedisError):
            self._redis.delete(fences.attempts_key(self._url, ref.task_id))

    def _check_token(self, ref: AttemptRef) -> None:
        """Raise LeaseLostError when a later claim is known; a lost counter is no proof of one."""
        current = _word(self._redis.get(fences.token_key(self._url, ref.task_id)))
        if current.isdigit() and int(current) > ref.token:
            raise _lost(f"Task {ref.task_id} was claimed again (token {current} after {ref.token}).", "")

    def _held(self, ref: AttemptRef) -> Task:
        return self._checked(ref, self._read(ref))

    def _checked(self, ref: AttemptRef, task: Task) -> Task:
        if not self._is_mine(ref, task):
            raise _lost(
                f"Task {ref.task_id} is {task.status or 'unknown'} and not held by {ref.actor_id}.", task.status
            )
        if self._left_s(task) <= 0:
            raise _lost(f"The lease of task {ref.task_id} ran out.", task.status)
        return task

    @staticmethod
    def _is_mine(ref: AttemptRef, task: Task) -> bool:
        return task.status == "in_progress" and task.assignee_id == ref.actor_id

    def _left_s(self, task: Task) -> float:
        """Return how long the lease still lasts by the service's clock, as far as its answers show it."""
        if task.lease_expires_at is None:
            return 0.0
        offset_s = self._client.clock_offset_s()
        if offset_s:
            offset_s += 1.0  # The service tells whole seconds, cut off: believe the lease rather a second shorter.
        now = datetime.now(UTC) + timedelta(seconds=offset_s)
        return (task.lease_expires_at - now).total_seconds()

    def _grant(self, task: Task) -> Grant:
        return Grant(task=task, fencing_token=None, ttl_s=min(self._left_s(task), self._lease_s))

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "lease_not_extended",
                ats_url=self._url,
                advice="This service does not extend leases; set DISPATCH_LEASE_MS above DISPATCH_TIMEOUT_MS.",
            )

    def _post(self, ref: AttemptRef, *texts: str) -> None:
        # A message on the thread is worth less than the attempt: nothing that happens to it ends the attempt.
        with contextlib.suppress(GatewayRejectedError, GatewayUnavailableError):
            self._send(ref, protocol.post_message(ref.task_id, *texts))

    def _read(self, ref: AttemptRef) -> Task:
        return parse_task(self._send(ref, protocol.get(ref.task_id)))

    def _send(self, ref: AttemptRef, request: protocol.Request) -> Any:
        return self._client.send(request, actor=Actor("agent", ref.actor_id, self._actor_name))


def _away(exc: RedisError) -> GatewayUnavailableError:
    return GatewayUnavailableError(f"Redis, which fences tasks of this service, gave no answer: {exc}.")


def _lost(sentence: str, status: str) -> LeaseLostError:
    return LeaseLostError(sentence, status=409, code="STALE_LEASE", facts={"status": status} if status else {})


def _word(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
