"""Reading the event log back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, select

from dispatch.service import wire
from dispatch.service.events import STEP, Event
from dispatch.service.rows import ALL
from dispatch.service.schema import events, messages, tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.service.store import Tx

_PAGE: Final = (
    select(*events.c)
    .where(events.c.seq > bindparam("p_after"), events.c.seq <= bindparam("p_until"))
    .order_by(events.c.seq)
    .limit(bindparam("p_limit"))
)
_OF_TASK: Final = (
    select(*events.c)
    .where(events.c.task_id == bindparam("p_task"), events.c.seq > bindparam("p_after"))
    .order_by(events.c.seq)
    .limit(bindparam("p_limit"))
)


def page(tx: Tx, after: int, until: int, limit: int) -> list[Event]:
    """Return the first ``limit`` events with after < seq <= until, each with its task as it is now."""
    rows = tx.all(_PAGE, {"p_after": after, "p_until": until, "p_limit": limit})
    shown = [row for row in rows if row.type != STEP]
    found = {row.id: row for row in tx.all(select(*ALL).where(tasks.c.id.in_({row.task_id for row in shown})))}
    said = {
        row.id: wire.message_json(row)
        for row in tx.all(select(*messages.c).where(messages.c.id.in_({r.message_id for r in shown if r.message_id})))
    }
    return [
        Event(
            row.seq,
            row.type,
            found.get(row.task_id),
            row.actor_id,
            row.actor_name,
            row.created_at,
            said.get(row.message_id),
        )
        for row in rows
    ]


def said(tx: Tx, lines: Sequence[Any]) -> dict[int, Any]:
    """Return kind and parts of the messages that these lines tell of, by their ids; of removed ones nothing."""
    ids = [line.message_id for line in lines if line.message_id]
    if not ids:
        return {}
    c = messages.c
    return {row.id: row for row in tx.all(select(c.id, c.kind, c.parts).where(c.id.in_(ids)))}


def of_task(tx: Tx, task_id: int, *, after: int = 0, limit: int = 100_000) -> Sequence[Any]:
    """Return the first ``limit`` lines of a task's history with a seq above ``after``, oldest first."""
    return tx.all(_OF_TASK, {"p_task": task_id, "p_after": after, "p_limit": limit})
