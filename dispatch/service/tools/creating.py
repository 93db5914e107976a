"""core_create_task and create_graph."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.lifecycle import Status
from dispatch.core.priority import NUMBER_OF
from dispatch.errors import InvalidInputError
from dispatch.service import creation, tasks, tenants, wire
from dispatch.service.access import agent_uuid
from dispatch.service.fields import NAME_CHARS_MAX
from dispatch.service.strict import label
from dispatch.service.tools import params as p
from dispatch.service.tools import shapes
from dispatch.service.tools.model import Param, Tool

if TYPE_CHECKING:
    from dispatch.service.rows import Scope
    from dispatch.service.store import Tx
    from dispatch.service.tools.model import Call

GRAPH_MAX: Final = 256
_NAME: Final = Param(label(NAME_CHARS_MAX), {"type": "string", "maxLength": NAME_CHARS_MAX})

_WHAT: Final = {
    "title": p.text(p.TITLE_CHARS_MAX, chars_min=1),
    "detail": p.text(p.DETAIL_CHARS_MAX),
    "status": p.STATUS,
    "priority": p.PRIORITY,
    "order_index": p.or_null(p.NUMBER),
    "assigned_to": p.or_null(p.UUID),
    "meta_json": p.META,
    "needs": p.each(_NAME, 32),
    "channel": _NAME,
}
"""What a task is, without what it refers to."""


def project_of(tx: Tx, call: Call, scope: Scope) -> int:
    """Return the number of the project, made if need be; a key for some projects makes none. Raises NotFoundError."""
    within = call.caller.projects
    return tenants.ensure(tx, scope) if within is None else tenants.project_id(tx, scope, within)


def _new(found: dict[str, Any], ident: str | None, run_id: str) -> tasks.NewTask:
    meta = found.get("meta_json")
    return tasks.NewTask(
        title=found["title"],
        description=found.get("detail", ""),
        channel=found.get("channel", "default"),
        priority=NUMBER_OF[found.get("priority", "none")],
        status=found.get("status", Status.BACKLOG),
        uuid=ident,
        run_id=run_id,
        order_index=found.get("order_index"),
        assigned_to=found.get("assigned_to"),
        meta_json=None if meta is None else wire.dumps(meta),
    )


async def create_task(call: Call) -> dict[str, Any]:
    """Create one task."""
    found, actor = call.arguments, call.actor()
    plan = creation.Plan(
        _new(found, found.get("task_id"), found["run_id"]),
        parent=found.get("parent_id"),
        depends_on=found.get("depends_on", ()),
        needs=found.get("needs", ()),
        key=found.get("idempotency_key"),
    )

    def work(tx: Tx) -> dict[str, Any]:
        project = project_of(tx, call, found["project_key"])
        row, created = creation.create(tx, project, actor, agent_uuid(actor.type, actor.id), plan)
        return {**shapes.show_one(tx, row), "created": created}

    return await call.store.write(work)


def _plans(found: dict[str, Any], agent: str) -> list[creation.Plan]:
    """Return what a graph creates, its local names replaced by UUIDs that a repetition gets as well."""
    refs = [item["ref"] for item in found["tasks"]]
    if len(set(refs)) != len(refs):
        raise InvalidInputError(f"The ref {next(ref for ref in refs if refs.count(ref) > 1)!r} is given twice.")
    key = found.get("idempotency_key")
    project = found["project_key"]
    base = None if key is None else f"{project.org}/{project.project}:{agent}:{key}"
    idents = {
        ref: str(uuid.uuid4() if base is None else uuid.uuid5(uuid.NAMESPACE_OID, f"{base}:{ref}")) for ref in refs
    }

    def named(name: str, field: str) -> str:
        if name in idents:
            return idents[name]
        try:
            return str(p.UUID.parse(field, name))
        except InvalidInputError:
            raise InvalidInputError(
                f"{field} names {name[:80]!r}, which is neither a ref of this graph nor a UUID."
            ) from None

    return [
        creation.Plan(
            _new(item, idents[item["ref"]], found["run_id"]),
            parent=named(item["parent"], "parent") if "parent" in item else None,
            depends_on=tuple(dict.fromkeys(named(name, "depends_on") for name in item.get("depends_on", ()))),
            needs=item.get("needs", ()),
            name=item["ref"],
        )
        for item in found["tasks"]
    ]


async def create_graph(call: Call) -> dict[str, Any]:
    """Create many tasks that refer to each other, all or none."""
    found, actor = call.arguments, call.actor()
    agent = agent_uuid(actor.type, actor.id)
    plans = _plans(found, agent)

    def work(tx: Tx) -> dict[str, Any]:
        project = project_of(tx, call, found["project_key"])
        rows, created = creation.create_graph(tx, project, actor, agent, plans, found.get("idempotency_key"))
        refs = [item["ref"] for item in found["tasks"]]
        made = [
            {"ref": ref, "task_id": row.uuid, "id": row.id, "status": row.status}
            for ref, row in zip(refs, rows, strict=True)
        ]
        return {"tasks": made, "created": created}

    return await call.store.write(work)


_WHERE: Final = {"project_key": p.PROJECT, "run_id": p.UUID, "agent_id": p.UUID}
_REF: Final = p.text(64, chars_min=1)

TOOLS: Final = (
    Tool(
        name="core_create_task",
        title="Create a task",
        description="Create a task and return it with its task_id. Starts in backlog; nothing runs it before it is in"
        " todo. A task in todo is offered to agents and to the workers of its channel once all of depends_on (same"
        " project) are completed. needs: capabilities its worker must have. Same idempotency_key or task_id with the"
        " same request: the same task, created=false.",
        run=create_task,
        params={
            **_WHERE,
            **_WHAT,
            "task_id": p.UUID,
            "parent_id": p.UUID,
            "depends_on": p.each(p.UUID, p.DEPENDENCIES_MAX),
            "idempotency_key": p.KEY,
        },
        required=("project_key", "run_id", "agent_id", "title"),
        output=shapes.task_output("task_id", "id", "status", "lease_token"),
        idempotent=False,
    ),
    Tool(
        name="create_graph",
        title="Create tasks that depend on each other",
        description="Create up to 256 tasks at once, all or none. Each has a local ref; depends_on and parent name"
        " refs or task_ids. Circles are refused. Returns the task_id of each ref.",
        run=create_graph,
        params={
            **_WHERE,
            "tasks": p.rows_of(
                {"ref": _REF, **_WHAT, "depends_on": p.each(_REF, p.DEPENDENCIES_MAX), "parent": _REF},
                ("ref", "title"),
                GRAPH_MAX,
            ),
            "idempotency_key": p.KEY,
        },
        required=("project_key", "run_id", "agent_id", "tasks"),
        output={
            "type": "object",
            "properties": {"tasks": {"type": "array", "items": {"type": "object"}}, "created": {"type": "boolean"}},
            "required": ["tasks", "created"],
        },
    ),
)
