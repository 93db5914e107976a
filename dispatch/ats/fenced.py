"""The gateway to a service that announces fencing: ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.ats import answers, protocol
from dispatch.ats.model import Actor, Grant, parse_task
from dispatch.core import results
from dispatch.core.review import Review, bounded

if TYPE_CHECKING:
    from dispatch.ats.client import Client
    from dispatch.ats.gateway import AttemptRef
    from dispatch.ats.model import Task

_RESULT: Final = ("id", "title", "status", "outputs")
_READ: Final = ("id", "uuid", "title", "channel", "status", "outputs")


class FencedGateway:
    """A TaskGateway whose every call carries the attempt's fencing token; the service refuses stale ones.

    ``lease_s`` is how long each grant shall last.
    """

    def __init__(self, client: Client, *, lease_s: float, actor_name: str = "dispatch") -> None:
        self._client = client
        self._lease_s = lease_s
        self._actor_name = actor_name

    def start(self, ref: AttemptRef, *, runner: str, message: str) -> Grant:
        """Begin the attempt: the worker's first act."""
        request = protocol.start(
            ref.task_id, token=ref.token, runner=runner, lease_s=self._lease_s, message=message or None
        )
        return self._grant(self._send(ref, request))

    def renew(self, ref: AttemptRef, *, message: str | None = None) -> Grant:
        """Extend the lease from now."""
        request = protocol.renew(ref.task_id, token=ref.token, lease_s=self._lease_s, message=message)
        return self._grant(self._send(ref, request))

    def complete(self, ref: AttemptRef, outputs: list[Any], *, review: bool = False) -> None:
        """Report success, or hand the result to review."""
        self._send(ref, protocol.complete(ref.task_id, outputs, token=ref.token, review=review))

    def fail(self, ref: AttemptRef, reason: str) -> None:
        """Report the final failure."""
        self._send(ref, protocol.fail(ref.task_id, reason, token=ref.token))

    def release(self, ref: AttemptRef, *, counted: bool, delay_s: float, reason: str) -> None:
        """Give the claim back; the task waits ``delay_s`` before it can be claimed again."""
        request = protocol.release(ref.task_id, token=ref.token, counted=counted, delay_s=delay_s, reason=reason)
        self._send(ref, request)

    def seen(self, ref: AttemptRef, digest: str) -> None:
        """Note that a sealed message is the content of the task."""
        self._send(ref, protocol.seal(ref.task_id, digest, token=ref.token))

    def read(self, task_id: str) -> Task:
        """Return a task as it is now, without its thread."""
        return parse_task(self._client.send(protocol.get(task_id, fields=_READ)))

    def say(self, ref: AttemptRef, text: str, meta: dict[str, Any] | None = None) -> str:
        """Append a text to the task's thread."""
        return answers.message_id_of(self._send(ref, protocol.post_log(ref.task_id, text, token=ref.token, meta=meta)))

    def was_said(self, ref: AttemptRef, text: str, *, after: str) -> bool:
        """Look for a text at the end of the thread."""
        thread = self._send(ref, protocol.list_messages(ref.task_id, limit=answers.SAID_AMONG))
        return answers.was_said(answers.messages_of(thread), text, after=after)

    def _send(self, ref: AttemptRef, request: protocol.Request) -> Any:
        return self._client.send(request, actor=Actor("agent", ref.actor_id, self._actor_name))

    def _grant(self, answer: Any) -> Grant:
        return read_grant(answer, default_ttl_s=self._lease_s)


def read_grant(answer: Any, *, default_ttl_s: float) -> Grant:
    """Read the answer to a claim, start or renewal of a fencing service.

    Raises GatewayUnavailableError when it is no task.
    """
    task = parse_task(answer)
    lease = answer.get("lease") if isinstance(answer, dict) else None
    lease = lease if isinstance(lease, dict) else {}
    token, ttl_ms = lease.get("fencing_token"), lease.get("ttl_ms")
    return Grant(
        task=task,
        fencing_token=token if isinstance(token, int) and not isinstance(token, bool) else task.fencing_token,
        ttl_s=ttl_ms / 1000.0 if isinstance(ttl_ms, int | float) and not isinstance(ttl_ms, bool) else default_ttl_s,
        dependencies=_results(answer),
        review=_review(answer),
    )


def _review(answer: Any) -> Review | None:
    """Read why a task came back; its earlier outputs stand in the task itself."""
    found = answer.get("review") if isinstance(answer, dict) else None
    if not isinstance(found, dict):
        return None
    said = found.get("messages")
    talk = [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []
    return bounded(found.get("note"), "", talk)


def _results(answer: Any) -> tuple[dict[str, Any], ...]:
    found = answer.get("dependencies") if isinstance(answer, dict) else None
    items = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return tuple(results.bounded([{name: one.get(name) for name in _RESULT} for one in items]))
