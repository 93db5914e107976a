"""core_update_task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.service import changes
from dispatch.service.tools import params as p
from dispatch.service.tools import shapes
from dispatch.service.tools.locking import TOKEN
from dispatch.service.tools.model import Tool

if TYPE_CHECKING:
    from dispatch.service.store import Tx
    from dispatch.service.tools.model import Call

_CHANGEABLE: Final = {
    "assigned_to": p.or_null(p.UUID),
    "priority": p.PRIORITY,
    "order_index": p.or_null(p.NUMBER),
    "meta_json": p.META,
}


async def update_task(call: Call) -> dict[str, Any]:
    """Change what a task says."""
    found, ref, actor = call.arguments, call.ref(), call.actor()
    wishes = {name: found[name] for name in _CHANGEABLE if name in found}

    def work(tx: Tx) -> dict[str, Any]:
        row = changes.update(
            tx,
            ref,
            actor,
            wishes,
            merge=found.get("merge_meta", True),
            note=found.get("note"),
            token=found.get("lease_token"),
            meta_bytes_max=p.META_BYTES_MAX,
        )
        return shapes.show_one(tx, row)

    return await call.store.write(work)


TOOLS: Final = (
    Tool(
        name="core_update_task",
        title="Change a task",
        description="Change assignee (null: nobody), priority, order or metadata; never the status. Locked tasks may be"
        " changed too. merge_meta=true sets the given keys (null removes one), false replaces all.",
        run=update_task,
        params={
            "task_id": p.UUID,
            "agent_id": p.UUID,
            **_CHANGEABLE,
            "merge_meta": p.flag(default=True),
            "note": p.NOTE,
            "lease_token": TOKEN,
        },
        required=("task_id", "agent_id"),
        output=shapes.task_output("task_id", "status", "priority", "assigned_to"),
        idempotent=True,
    ),
)
