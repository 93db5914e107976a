"""core_get_task, core_list_tasks and task_history: nothing here changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.errors import InvalidInputError, NotFoundError
from dispatch.service import history, listing, messages, tenants, wire
from dispatch.service.access import Access, agent_uuid
from dispatch.service.rows import fetch
from dispatch.service.tools import params as p
from dispatch.service.tools import shapes
from dispatch.service.tools.model import Param, Tool

if TYPE_CHECKING:
    from dispatch.service.rows import Scope
    from dispatch.service.store import Tx
    from dispatch.service.tools.model import Call

LIST_MAX: Final = 1_000
HISTORY_MAX: Final = 200
NOTE_CHARS: Final = 200
"""How much of a message its line in the history shows."""


def known_project(tx: Tx, call: Call, scope: Scope) -> int:
    """Return the number of a project that the caller may see. Raises NotFoundError."""
    try:
        return tenants.project_id(tx, scope, call.caller.projects)
    except NotFoundError as exc:
        raise NotFoundError(
            f"There is no project {scope.org}/{scope.project}.",
            next_step="Correct project_key: core_get_task shows a task's. A project begins with its first task"
            " (core_create_task).",
        ) from exc


async def get_task(call: Call) -> dict[str, Any]:
    """Show one task."""
    ref = call.ref()
    return await call.store.read(lambda tx: shapes.show_one(tx, fetch(tx, ref)))


async def list_tasks(call: Call) -> dict[str, Any]:
    """List a project's tasks in board order."""
    found = call.arguments
    limit = found.get("limit", 20)
    names = ("task_id", *found["fields"]) if "fields" in found else shapes.SUMMARY
    cursor = found.get("cursor")
    after = None if cursor is None else listing.read_cursor(cursor)

    def work(tx: Tx) -> dict[str, Any]:
        board = listing.Board(
            known_project(tx, call, found["project_key"]),
            status=found.get("status", ()),
            priority=found.get("priority", ()),
            assigned_to=found.get("assigned_to"),
            title=found.get("title_search"),
            limit=limit + 1,
            after=after,
        )
        rows = listing.page(tx, board)
        return _fit(tx, rows[:limit], tuple(dict.fromkeys(names)), more=len(rows) > limit, whole="fields" in found)

    return await call.store.read(work)


def _fit(tx: Tx, rows: Any, names: tuple[str, ...], *, more: bool, whole: bool) -> dict[str, Any]:
    shown = [
        {name: shapes.brief(value) for name, value in row.items() if whole or value is not None}
        for row in shapes.show(tx, rows, names)
    ]
    count = shapes.fitting(shown)
    answer: dict[str, Any] = {"tasks": shown[:count], "count": count}
    if count < len(shown):
        answer["hint"] = "The list was cut to stay readable; go on with next_cursor, or ask for fewer fields."
    answer["next_cursor"] = listing.cursor_of(rows[count - 1]) if count < len(shown) or more else None
    return answer


async def task_history(call: Call) -> dict[str, Any]:
    """Show what happened to a task, oldest first."""
    found, ref = call.arguments, call.ref()
    limit = found.get("limit", 50)

    def work(tx: Tx) -> dict[str, Any]:
        row = fetch(tx, ref)
        lines = history.of_task(tx, row.id, after=found.get("since", 0), limit=limit + 1)
        said = history.said(tx, lines[:limit])
        shown = [_line(line, said.get(line.message_id)) for line in lines[:limit]]
        count = shapes.fitting(shown)
        more = count < len(lines)
        return {
            "events": shown[:count],
            "count": count,
            "next_since": shown[count - 1]["seq"] if more and count else None,
        }

    return await call.store.read(work)


def _line(line: Any, message: Any) -> dict[str, Any]:
    """Return one line; that of a message has its kind, and the beginning of its text as note."""
    shown = {
        "seq": line.seq,
        "at": wire.iso(line.created_at),
        "event": line.type.removeprefix("task."),
        "from": line.from_status,
        "to": line.to_status,
        "agent_id": agent_uuid(line.actor_type, line.actor_id),
        "agent_name": line.actor_name,
        "note": line.note if message is None else messages.text_of(message.parts)[:NOTE_CHARS],
        "kind": None if message is None else message.kind,
        "lease_token": line.token,
        "message_id": line.message_id,
    }
    return {name: value for name, value in shown.items() if value is not None}


def _field(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in shapes.TASK_SCHEMA:
        raise InvalidInputError(f"{name} must be one of {', '.join(shapes.TASK_SCHEMA)}.")
    return value


TOOLS: Final = (
    Tool(
        name="core_get_task",
        title="Read a task",
        description="Return a task with everything known of it: status, lock (locked_by, lock_expires_at,"
        " lease_token), dependencies still open (waits_for), metadata, result.",
        run=get_task,
        params={"task_id": p.UUID},
        required=("task_id",),
        output=shapes.task_output(),
        access=Access.READ,
        read_only=True,
        idempotent=True,
    ),
    Tool(
        name="core_list_tasks",
        title="List tasks",
        description="List a project's tasks by order_index (tasks without one last), then priority, then age. Rows are"
        " short; fields names others as in core_get_task. next_cursor continues, null at the end.",
        run=list_tasks,
        params={
            "project_key": p.PROJECT,
            "status": p.each(p.STATUS, 9),
            "priority": p.each(p.PRIORITY, 5),
            "assigned_to": p.UUID,
            "title_search": p.text(256),
            "limit": p.whole(1, LIST_MAX, 20),
            "cursor": p.text(200, chars_min=1),
            "fields": p.each(Param(_field, {"type": "string"}), len(shapes.TASK_SCHEMA), count_min=1),
        },
        required=("project_key",),
        output={
            "type": "object",
            "properties": {
                "tasks": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"task_id": {"type": "string"}}, "required": ["task_id"]},
                },
                "count": {"type": "integer"},
                "next_cursor": {"type": ["string", "null"]},
            },
            "required": ["tasks", "count", "next_cursor"],
        },
        access=Access.READ,
        read_only=True,
        idempotent=True,
    ),
    Tool(
        name="task_history",
        title="Read a task's history",
        description="Return what happened to a task, oldest first: moves with notes, locks, messages (their kind, and"
        " how they begin). since: the seq"
        " after which to begin; next_since continues.",
        run=task_history,
        params={"task_id": p.UUID, "since": p.whole(0, 2**63 - 1), "limit": p.whole(1, HISTORY_MAX, 50)},
        required=("task_id",),
        output={
            "type": "object",
            "properties": {
                "events": {"type": "array", "items": {"type": "object"}},
                "count": {"type": "integer"},
                "next_since": {"type": ["integer", "null"]},
            },
            "required": ["events", "count", "next_since"],
        },
        access=Access.READ,
        read_only=True,
        idempotent=True,
    ),
)
