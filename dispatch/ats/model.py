"""What travels: tasks, leases and actors, read liberally from the wire.

Ids are strings everywhere in the fleet; our own service numbers tasks, another
ATS may not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dispatch.core.dependencies import named_in
from dispatch.core.routing import Trait, traits_of
from dispatch.core.sealed import is_sealed
from dispatch.errors import GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.core.review import Review


@dataclass(frozen=True, slots=True)
class Actor:
    """Who calls: ``type`` is agent, human or system."""

    type: str
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task as a client sees it; ``status`` is an ATS word. Fields a service does not send are None or empty."""

    id: str
    title: str = ""
    description: str = ""
    type: str = "task"
    channel: str = ""
    priority: int = 5
    status: str = ""
    payload: Any = None
    outputs: Any = None
    uuid: str | None = None
    assignee_id: str | None = None
    lease_expires_at: datetime | None = None
    fencing_token: int | None = None
    attempts: int = 0
    lease_losses: int = 0
    not_before_at: datetime | None = None
    runner: str | None = None
    reason: str | None = None
    """Why the task failed, or was released last."""
    depends_on: tuple[str, ...] = ()
    """Ids of the tasks that it depends on: from the field, or from the payload where the service has no such field."""
    created_at: datetime | None = None
    """By the service's clock."""
    updated_at: datetime | None = None
    """By the service's clock."""
    traits: Mapping[str, Trait] = field(default_factory=dict)
    """What decides where the task goes: short plain values of its payload (core.routing)."""
    sealed: bool = False
    """It says that it is sealed; thin events of our service say so without the payload."""
    raw: dict[str, Any] | None = None
    """The object as it came, for display; None in thin events."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease: the task as of the grant, the token (None without fencing), and how long it lasts from now."""

    task: Task
    fencing_token: int | None
    ttl_s: float
    dependencies: tuple[dict[str, Any], ...] = ()
    """The results of what the task depends on, after a start: ``id title status outputs`` (core.results)."""
    review: Review | None = None
    """Why it was sent back, after a start; ``task.outputs`` are then those of the attempt before."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a task, as the feed tells it: a hint, never the truth."""

    verb: str
    """The event's type without ``task.``: created, claimed, lease_expired, ..."""
    task_id: str
    task: Task | None
    """The task as the event shows it; ``raw`` is None. Plain services send all of it, ours a part."""
    channel: str
    """The task's channel, "" when the service does not say."""
    seq: int | None
    """The event's number; None without the extension."""
    actor_id: str | None
    actor_name: str | None = None
    message: dict[str, Any] | None = None
    """What was said, when it is about a message."""


def parse_time(value: Any) -> datetime | None:
    """Read an ISO-8601 time, in UTC when it names no zone; anything else is None."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _depends_on(body: dict[str, Any]) -> tuple[str, ...]:
    said = body if isinstance(body.get("depends_on"), list) else body.get("payload")
    return tuple(str(name) for name in named_in(said) or ())


def parse_task(body: Any, *, keep_raw: bool = True) -> Task:
    """Read a task from an answer or an event, in its envelope ``{"task": {...}}`` or bare.

    Raises GatewayUnavailableError when there is no task with an id in it.
    """
    if isinstance(body, dict) and isinstance(body.get("task"), dict):
        body = body["task"]
    if not isinstance(body, dict):
        raise GatewayUnavailableError("The task service answered something that is not a task.")
    ident = body.get("id") if body.get("id") is not None else body.get("uuid")
    if isinstance(ident, bool) or not isinstance(ident, int | str) or ident == "":
        raise GatewayUnavailableError("The task service answered a task without an id.")
    token = body.get("fencing_token")

    def text(key: str, default: str = "") -> str:
        value = body.get(key)
        return value if isinstance(value, str) else default

    return Task(
        id=str(ident),
        uuid=text("uuid") or None,
        title=text("title"),
        description=text("description"),
        type=text("type", "task"),
        channel=text("channel"),
        priority=_whole(body.get("priority"), 5),
        status=text("status"),
        payload=body.get("payload"),
        outputs=body.get("outputs"),
        assignee_id=text("assignee_id") or None,
        lease_expires_at=parse_time(body.get("lease_expires")),
        fencing_token=token if isinstance(token, int) and not isinstance(token, bool) else None,
        attempts=_whole(body.get("attempts"), 0),
        lease_losses=_whole(body.get("lease_losses"), 0),
        not_before_at=parse_time(body.get("not_before")),
        runner=text("runner") or None,
        reason=text("reason") or None,
        depends_on=_depends_on(body),
        created_at=parse_time(body.get("created_at")),
        updated_at=parse_time(body.get("updated_at")),
        traits=traits_of(body["traits"] if isinstance(body.get("traits"), dict) else body.get("payload")),
        sealed=body.get("sealed") is True or is_sealed(body.get("payload")),
        raw=body if keep_raw else None,
    )
