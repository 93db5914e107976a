"""Tasks and messages as the tools show them, and what clients are told of these objects.

Objects are plain JSON values in the words of the Task Tools. A list never
exceeds ``LIST_CHARS_MAX``: rows are dropped from its end, and a cursor says
where to go on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, select

from dispatch.core.lifecycle import Status
from dispatch.core.priority import word_of
from dispatch.service import tenants, wire
from dispatch.service.access import agent_uuid
from dispatch.service.collation import bytewise
from dispatch.service.schema import (
    missing_dependencies,
    organizations,
    projects,
    task_dependencies,
    task_needs,
    tasks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dispatch.service.store import Tx

LIST_CHARS_MAX: Final = 40_000
"""UUIDs and numbers cost a client's model a token for less than two characters; this stays under 25,000 tokens."""
RESULT_CHARS_MAX: Final = 24_000
_SHOWN_CHARS_MAX: Final = 2_000
_SHOWN_ITEMS_MAX: Final = 32

_needed: Final = tasks.alias("needed")
_parents: Final = tasks.alias("parents")
_PROJECTS: Final = (
    select(projects.c.id, organizations.c.slug, projects.c.slug)
    .join(organizations, organizations.c.id == projects.c.organization_id)
    .where(projects.c.id.in_(bindparam("p_ids", expanding=True)))
)
_PARENTS: Final = select(_parents.c.id, _parents.c.uuid).where(_parents.c.id.in_(bindparam("p_ids", expanding=True)))
_DEPENDENCIES: Final = (
    select(task_dependencies.c.task_id, _needed.c.uuid, _needed.c.status)
    .join(_needed, _needed.c.id == task_dependencies.c.depends_on_id)
    .where(task_dependencies.c.task_id.in_(bindparam("p_ids", expanding=True)))
    .order_by(_needed.c.id)
)
_MISSING: Final = (
    select(missing_dependencies.c.task_id, missing_dependencies.c.name)
    .where(missing_dependencies.c.task_id.in_(bindparam("p_ids", expanding=True)))
    .order_by(missing_dependencies.c.task_id, missing_dependencies.c.name)
)
_NEEDS: Final = (
    select(task_needs.c.task_id, task_needs.c.name)
    .where(task_needs.c.task_id.in_(bindparam("p_ids", expanding=True)))
    .order_by(bytewise(task_needs.c.name))
)

_TEXT: Final = {"type": "string"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_WHOLE: Final = {"type": "integer"}

TASK_SCHEMA: Final[dict[str, Any]] = {
    "task_id": _TEXT,
    "id": _WHOLE,
    "project_key": _TEXT,
    "title": _TEXT,
    "detail": _TEXT,
    "status": _TEXT,
    "priority": _TEXT,
    "order_index": {"type": ["number", "null"]},
    "assigned_to": _TEXT_OR_NULL,
    "parent_id": _TEXT_OR_NULL,
    "depends_on": {"type": "array"},
    "waits_for": {"type": "array"},
    "needs": {"type": "array"},
    "run_id": _TEXT_OR_NULL,
    "created_by": _TEXT,
    "meta_json": {"type": "object"},
    "channel": _TEXT,
    "type": _TEXT,
    "locked_by": _TEXT_OR_NULL,
    "locked_by_name": _TEXT_OR_NULL,
    "locked_since": _TEXT_OR_NULL,
    "lock_expires_at": _TEXT_OR_NULL,
    "lease_token": _WHOLE,
    "attempts": _WHOLE,
    "reason": _TEXT_OR_NULL,
    "payload": {},
    "outputs": {},
    "not_before": _TEXT_OR_NULL,
    "created_at": _TEXT,
    "updated_at": _TEXT,
    "status_since": _TEXT,
    "started_at": _TEXT_OR_NULL,
    "completed_at": _TEXT_OR_NULL,
}
"""Field -> JSON schema, in the order in which they are shown."""

SUMMARY: Final = ("task_id", "title", "status", "priority", "assigned_to", "locked_by", "updated_at")
"""What a row of a list has unless other fields are asked for; what is null is left out."""


def task_output(*names: str) -> dict[str, Any]:
    """Return the output schema of a tool that answers with a task; it names these fields, or all."""
    shown = names or tuple(TASK_SCHEMA)
    required = list(names) or ["task_id", "status"]
    return {"type": "object", "properties": {name: TASK_SCHEMA[name] for name in shown}, "required": required}


def keys_of(tx: Tx, ids: Iterable[int]) -> dict[int, str]:
    """Return the project keys of project numbers."""
    rows = tx.all(_PROJECTS, {"p_ids": sorted(set(ids))})
    return {row[0]: row[2] if row[1] == tenants.DEFAULT.org else f"{row[1]}/{row[2]}" for row in rows}


def _big(text: str | None, chars_max: int) -> Any:
    """Return stored JSON as a value, or how large it is when it is too large to be shown."""
    if text is None:
        return None
    if len(text) > chars_max:
        return {"omitted": f"{len(text)} characters of JSON; read GET /tasks/{{id}} for all of it"}
    return json.loads(text)


def _of_row(row: Any) -> dict[str, Callable[[], Any]]:
    """Return each field that needs no other table, as a function, so that a list makes only what it shows."""
    held = row.held
    return {
        "task_id": lambda: row.uuid,
        "id": lambda: row.id,
        "title": lambda: row.title,
        "detail": lambda: row.description,
        "status": lambda: row.status,
        "priority": lambda: word_of(row.priority),
        "order_index": lambda: row.order_index,
        "assigned_to": lambda: row.assigned_to,
        "run_id": lambda: row.run_id,
        "created_by": lambda: agent_uuid(row.source_type, row.source_id),
        "meta_json": lambda: json.loads(row.meta_json) if row.meta_json else {},
        "channel": lambda: row.channel,
        "type": lambda: row.type,
        "locked_by": lambda: agent_uuid(row.holder_type, row.holder_id) if held else None,
        "locked_by_name": lambda: row.holder_name if held else None,
        "locked_since": lambda: wire.iso(row.held_since) if held else None,
        "lock_expires_at": lambda: wire.iso(row.lease_expires_at) if held else None,
        "lease_token": lambda: row.fencing_token,
        "attempts": lambda: row.attempts,
        "reason": lambda: row.reason,
        "payload": lambda: _big(row.payload, RESULT_CHARS_MAX),
        "outputs": lambda: _big(row.outputs, RESULT_CHARS_MAX),
        "not_before": lambda: wire.iso(row.not_before),
        "created_at": lambda: wire.iso(row.created_at),
        "updated_at": lambda: wire.iso(row.updated_at),
        "status_since": lambda: wire.iso(row.entered_at),
        "started_at": lambda: wire.iso(row.started_at),
        "completed_at": lambda: wire.iso(row.completed_at),
    }


def show(tx: Tx, rows: Sequence[Any], names: Sequence[str] = tuple(TASK_SCHEMA)) -> list[dict[str, Any]]:
    """Return tasks with the named fields."""
    wanted = set(names)
    ids = {"p_ids": [row.id for row in rows]}
    keys = keys_of(tx, (row.project_id for row in rows)) if "project_key" in wanted else {}
    parents: dict[int, str] = {}
    if "parent_id" in wanted:
        of = sorted({row.parent_id for row in rows if row.parent_id is not None})
        parents = {row[0]: row[1] for row in tx.all(_PARENTS, {"p_ids": of})} if of else {}
    needed: dict[int, list[str]] = {}
    waits: dict[int, list[str]] = {}
    if rows and wanted & {"depends_on", "waits_for"}:
        for task_id, uuid, status in tx.all(_DEPENDENCIES, ids):
            needed.setdefault(task_id, []).append(uuid)
            if status != Status.COMPLETED:
                waits.setdefault(task_id, []).append(uuid)
        for task_id, name in tx.all(_MISSING, ids) if any(row.depends_on for row in rows) else ():
            needed.setdefault(task_id, []).append(name)
            waits.setdefault(task_id, []).append(name)
    needs: dict[int, list[str]] = {}
    if rows and "needs" in wanted:
        for task_id, name in tx.all(_NEEDS, ids):
            needs.setdefault(task_id, []).append(name)
    shown = []
    for row in rows:
        makers = _of_row(row)
        others = {
            "project_key": keys.get(row.project_id),
            "parent_id": parents.get(row.parent_id),
            "depends_on": needed.get(row.id, []),
            "waits_for": waits.get(row.id, []),
            "needs": needs.get(row.id, []),
        }
        shown.append({name: makers[name]() if name in makers else others[name] for name in names})
    return shown


def show_one(tx: Tx, row: Any) -> dict[str, Any]:
    """Return one task with all its fields."""
    return show(tx, [row])[0]


def brief(value: Any) -> Any:
    """Return a value of a list's row, cut where it is long."""
    if isinstance(value, str) and len(value) > _SHOWN_CHARS_MAX:
        return value[: _SHOWN_CHARS_MAX - 1] + "…"
    if isinstance(value, list):
        return [brief(item) for item in value[:_SHOWN_ITEMS_MAX]]
    if isinstance(value, dict):
        size = len(wire.dumps(value))
        if size > _SHOWN_CHARS_MAX:
            return {"omitted": f"{size} characters; read core_get_task"}
    return value


def fitting(rows: Sequence[Any]) -> int:
    """Return how many of the JSON values fit into a list's size; the first always does."""
    chars = 0
    for at, row in enumerate(rows):
        chars += len(wire.dumps(row)) + 1
        if at and chars > LIST_CHARS_MAX:
            return at
    return len(rows)


def show_message(row: Any, task_uuid: str) -> dict[str, Any]:
    """Return a message of a task's thread. ``body`` is the text of its parts; others stay in ``parts``."""
    parts = json.loads(row.parts)
    texts = [part.get("content", "") for part in parts if part.get("type") == "text"]
    shown: dict[str, Any] = {
        "message_id": row.id,
        "task_id": task_uuid,
        "agent_id": agent_uuid(row.actor_type, row.actor_id),
        "agent_name": row.actor_name,
        "kind": row.kind,
        "body": "\n".join(texts),
        "created_at": wire.iso(row.created_at),
    }
    if row.tags:
        shown["tags"] = json.loads(row.tags)
    if row.meta:
        shown["meta"] = json.loads(row.meta)
    if len(texts) != len(parts):
        shown["parts"] = [part for part in parts if part.get("type") != "text"]
    return shown
