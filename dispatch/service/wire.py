"""The objects of the wire as JSON text, made from rows.

Payload, outputs and parts are stored as JSON text and go out as they are: they
are spliced in, not parsed.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.lifecycle import ATS_WORD, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WORDS: Final[Mapping[str, str]] = {str(state): word for state, word in ATS_WORD.items()}

_PLAIN: Final = (
    "id",
    "uuid",
    "title",
    "description",
    "type",
    "channel",
    "priority",
    "source_type",
    "source_id",
    "source_name",
    "project_id",
    "fencing_token",
    "attempts",
    "lease_losses",
    "runner",
    "reason",
    "sealed",
)
_TIMES: Final = ("not_before", "created_at", "updated_at", "started_at", "completed_at")
_RAW: Final = {"payload": "null", "outputs": "null", "depends_on": "[]", "traits": "{}"}
"""Fields that are stored as JSON, and what stands for nothing."""
_HOLDER: Final = {"assignee_type": "holder_type", "assignee_id": "holder_id", "assignee_name": "holder_name"}

TASK_FIELDS: Final = frozenset(
    {*_PLAIN, *_TIMES, *_RAW, *_HOLDER, "status", "needs_review", "lease_expires", "lease_ttl_ms"}
)
"""Every field of a task on the wire; ``messages`` comes on top where they are asked for."""

_COLUMNS: Final = {
    **_HOLDER,
    "lease_expires": "lease_expires_at",
    "lease_ttl_ms": "lease_expires_at",
}


def word_of(status: str) -> str:
    """Return the ATS word of a stored state."""
    return _WORDS[status]


def state_of(status: str) -> Status:
    """Return the state that a row holds."""
    return Status(status)


@lru_cache(maxsize=1024)
def iso(time_ms: int | None) -> str | None:
    """Write a stored time as ISO-8601 in UTC with milliseconds."""
    if time_ms is None:
        return None
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds")[:-6] + "Z"


def dumps(value: Any) -> str:
    """Write compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _splice(fields: Mapping[str, Any], raw: Iterable[tuple[str, str | None]]) -> str:
    head = json.dumps(fields, separators=(",", ":"))[:-1]
    tail = "".join([f',"{name}":{text if text is not None else "null"}' for name, text in raw])
    if head == "{":
        tail = tail[1:]
    return f"{head}{tail}}}"


def task_json(row: Any, now_ms: int) -> str:
    """Write a whole task. ``lease_ttl_ms`` is there only while it is leased."""
    fields = {
        "id": row.id,
        "uuid": row.uuid,
        "title": row.title,
        "description": row.description,
        "type": row.type,
        "channel": row.channel,
        "priority": row.priority,
        "status": _WORDS[row.status],
        "source_type": row.source_type,
        "source_id": row.source_id,
        "source_name": row.source_name,
        "assignee_type": row.holder_type,
        "assignee_id": row.holder_id,
        "assignee_name": row.holder_name,
        "lease_expires": iso(row.lease_expires_at),
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "started_at": iso(row.started_at),
        "completed_at": iso(row.completed_at),
        "project_id": row.project_id,
        "needs_review": row.needs_review,
        "fencing_token": row.fencing_token,
        "attempts": row.attempts,
        "lease_losses": row.lease_losses,
        "not_before": iso(row.not_before),
        "runner": row.runner,
        "reason": row.reason,
        "sealed": row.sealed,
    }
    if row.lease_expires_at is not None:
        fields["lease_ttl_ms"] = max(0, row.lease_expires_at - now_ms)
    return _splice(
        fields,
        (
            ("payload", row.payload),
            ("outputs", row.outputs),
            ("depends_on", row.depends_on or "[]"),
            ("traits", row.traits or "{}"),
        ),
    )


def thin_task_json(row: Any) -> str:
    """Write what the fleet needs to know about a task when something happened to it."""
    return _splice(
        {
            "id": row.id,
            "uuid": row.uuid,
            "title": row.title,
            "channel": row.channel,
            "type": row.type,
            "priority": row.priority,
            "status": _WORDS[row.status],
            "updated_at": iso(row.updated_at),
            "fencing_token": row.fencing_token,
            "attempts": row.attempts,
            "lease_losses": row.lease_losses,
            "not_before": iso(row.not_before),
            "runner": row.runner,
            "assignee_id": row.holder_id,
            "sealed": row.sealed,
        },
        (("depends_on", row.depends_on or "[]"), ("traits", row.traits or "{}")),
    )


def columns_of(names: Sequence[str]) -> list[str]:
    """Return the columns that are needed to show the named fields."""
    return list(dict.fromkeys(_COLUMNS.get(name, name) for name in names))


def partial_task_json(row: Any, names: Sequence[str], now_ms: int) -> str:
    """Write only the named fields of a task, from a row that has ``columns_of(names)``."""
    fields: dict[str, Any] = {}
    raw: list[tuple[str, str | None]] = []
    for name in names:
        value = getattr(row, _COLUMNS.get(name, name))
        if name in _RAW:
            raw.append((name, value or _RAW[name]))
        elif name == "status":
            fields[name] = _WORDS[value]
        elif name == "lease_ttl_ms":
            if value is not None:
                fields[name] = max(0, value - now_ms)
        else:
            fields[name] = iso(value) if name in _TIMES or name == "lease_expires" else value
    return _splice(fields, raw)


def message_json(row: Any) -> str:
    """Write a message of a task's thread."""
    fields = {
        "id": row.id,
        "task_id": row.task_id,
        "actor_type": row.actor_type,
        "actor_id": row.actor_id,
        "actor_name": row.actor_name,
        "kind": row.kind,
        "created_at": iso(row.created_at),
    }
    return _splice(fields, (("parts", row.parts), ("tags", row.tags), ("meta", row.meta)))
