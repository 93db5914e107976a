"""explain and unblocks: why a task is not running, and what its completion would set free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from dispatch.core.lifecycle import FINISHED, Status
from dispatch.core.waiting import Facts, Needed, reasons
from dispatch.service import dependents, doomed, listeners, readiness, wire
from dispatch.service.access import Access
from dispatch.service.rows import fetch
from dispatch.service.schema import tasks
from dispatch.service.tools import params as p
from dispatch.service.tools import shapes
from dispatch.service.tools.model import Tool

if TYPE_CHECKING:
    from dispatch.service.store import Tx
    from dispatch.service.tools.model import Call

_SHOWN_MAX: Final = 100


def _facts(tx: Tx, row: Any) -> Facts:
    c = tasks.c
    ready = row.status == Status.TODO and not row.held
    ahead = 0
    if ready:
        before = (c.priority > row.priority) | ((c.priority == row.priority) & (c.id < row.id))
        query = select(func.count()).select_from(tasks)
        ahead = tx.one(query.where(c.status == Status.TODO.value, c.channel == row.channel, before))[0]
    needs = shapes.show(tx, [row], ("needs",))[0]["needs"]
    expires = row.lease_expires_at
    return Facts(
        status=Status(row.status),
        waits_for=[
            Needed(f"#{one.id} ({one.uuid})", Status(one.status)) for one in readiness.open_dependencies(tx, row.id)
        ],
        missing=[_called(name) for name in readiness.missing_names(tx, row.id)],
        circle=_circle(tx, row),
        holder=row.holder_name if row.held else None,
        until=wire.iso(expires) if row.held else None,
        is_expired=bool(row.held and expires is not None and expires <= tx.now_ms),
        yields=row.yields,
        pause_s=max(0, (row.not_before or 0) - tx.now_ms) / 1000,
        assigned_to=row.assigned_to,
        needs=needs,
        listeners=listeners.listening(tx, row.channel) if ready else 0,
        ahead=ahead,
        reason=row.reason,
        is_running=row.runner is not None,
        is_sealed=row.sealed,
    )


def _called(name: str) -> str:
    return f"#{name}" if name.isdigit() else name


def _circle(tx: Tx, row: Any) -> str:
    if row.depends_on is None or Status(row.status) in FINISHED:
        return ""
    return doomed.shown(doomed.circle(tx, row.id))


def explained(tx: Tx, row: Any) -> dict[str, Any]:
    """Return why a task is not running, as the tool answers."""
    found = reasons(_facts(tx, row))
    running = not found and row.status == Status.IN_PROGRESS
    summary = " ".join(reason.text for reason in found) or f"It is running; {row.holder_name} holds it."
    return {
        "task_id": row.uuid,
        "status": row.status,
        "running": running,
        "summary": summary,
        "reasons": [{"code": one.code, "text": one.text, "next": one.advice} for one in found],
    }


async def explain(call: Call) -> dict[str, Any]:
    """Say why a task is not running."""
    ref = call.ref()
    return await call.store.read(lambda tx: explained(tx, fetch(tx, ref)))


async def unblocks(call: Call) -> dict[str, Any]:
    """Say what the completion of a task sets free."""
    ref = call.ref()

    def work(tx: Tx) -> dict[str, Any]:
        row = fetch(tx, ref)
        # Nothing waits for what is completed.
        done = row.status == Status.COMPLETED
        freed, behind, cut = ([], 0, False) if done else dependents.behind(tx, row.id)
        shown = [{"task_id": one.uuid, "title": one.title, "status": one.status} for one in freed[:_SHOWN_MAX]]
        count = shapes.fitting(shown)
        return {
            "task_id": row.uuid,
            "frees": shown[:count],
            "frees_count": len(freed),
            "behind_count": behind,
            "counted_all": not cut,
        }

    return await call.store.read(work)


_TASK: Final = {"task_id": p.UUID}

TOOLS: Final = (
    Tool(
        name="explain",
        title="Why is this task not running?",
        description="Say why a task is not running and what to do: dependencies, lock, review, assignee, backoff, no"
        " worker, place in line.",
        run=explain,
        params=_TASK,
        required=("task_id",),
        output={
            "type": "object",
            "properties": {
                "task_id": {"type": "string"},
                "status": {"type": "string"},
                "running": {"type": "boolean"},
                "summary": {"type": "string"},
                "reasons": {"type": "array"},
            },
            "required": ["task_id", "status", "running", "summary", "reasons"],
        },
        access=Access.READ,
        read_only=True,
        idempotent=True,
    ),
    Tool(
        name="unblocks",
        title="What would this task's completion free?",
        description="List the tasks that wait for this one alone (frees), and count all that stand behind it.",
        run=unblocks,
        params=_TASK,
        required=("task_id",),
        output={
            "type": "object",
            "properties": {
                "task_id": {"type": "string"},
                "frees": {"type": "array"},
                "frees_count": {"type": "integer"},
                "behind_count": {"type": "integer"},
                "counted_all": {"type": "boolean"},
            },
            "required": ["task_id", "frees", "frees_count", "behind_count", "counted_all"],
        },
        access=Access.READ,
        read_only=True,
        idempotent=True,
    ),
)
