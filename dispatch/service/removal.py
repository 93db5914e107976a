"""Removing ended tasks with everything of theirs. One transaction on a ``Tx``.

A task goes when it ended long ago, nothing of it was changed since, no
callback of it waits, its parent (if it has one) is as old, and
nobody needs it: all that depends on it and all its subtasks are gone or go
with it. So what was reopened finds all that it needs.

What stays for good is the register of sealed messages (``seals``). A digest
there says "this message ran, in that task". Whoever has a copy of the message
can create a task with it at any time, and version 1 of the envelope has no
time in it; without the row it would run a second time. It is some 100 bytes.
Numbers of tasks are not given a second time (AUTOINCREMENT, a sequence), so
that the row can never mean another task. UUIDs that creators chose stay for
good too (``idempotency``): the same request again must not run a second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, delete, exists, or_, select, tuple_, union_all

from dispatch.core import retention as kinds
from dispatch.core.retention import going
from dispatch.service import pruning
from dispatch.service.deliveries import WAITING
from dispatch.service.pruning import ROWS_MAX, Step
from dispatch.service.schema import (
    deliveries,
    events,
    messages,
    missing_dependencies,
    task_dependencies,
    task_needs,
    tasks,
)
from dispatch.service.walks import IDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.service.store import Tx

WINDOW: Final = 20
"""How many tasks a step looks at. Few: each may hold some MiB, which count more than rows."""

_parent: Final = tasks.alias("parent")
_child: Final = tasks.alias("child")
_edge: Final = task_dependencies.c

NEXT_OLD: Final = (
    select(tasks.c.id, tasks.c.completed_at)
    .where(
        tasks.c.completed_at < bindparam("p_before"),
        tuple_(tasks.c.completed_at, tasks.c.id) < tuple_(bindparam("p_at"), bindparam("p_number")),
    )
    .order_by(tasks.c.completed_at.desc(), tasks.c.id.desc())
    .limit(WINDOW)
)
"""The newest first: what depends on others ended after them, as a rule, and so goes before them."""
FREE: Final = select(tasks.c.id).where(
    tasks.c.id.in_(IDS),
    tasks.c.id != bindparam("p_newest"),
    tasks.c.updated_at < bindparam("p_before"),
    or_(
        tasks.c.parent_id.is_(None),
        exists().where(_parent.c.id == tasks.c.parent_id, _parent.c.completed_at < bindparam("p_before")),
    ),
    ~exists().where(_edge.depends_on_id == tasks.c.id, _edge.task_id.not_in(IDS)),
    ~exists().where(_child.c.parent_id == tasks.c.id, _child.c.id.not_in(IDS)),
    ~exists().where(deliveries.c.task_id == tasks.c.id, deliveries.c.state == WAITING),
)
"""Those of the tasks that are kept by nothing outside of them."""
NEEDERS: Final = union_all(
    select(_edge.depends_on_id.label("task"), _edge.task_id.label("needer")).where(
        _edge.depends_on_id.in_(IDS), _edge.task_id.in_(IDS)
    ),
    select(tasks.c.parent_id, tasks.c.id).where(tasks.c.parent_id.in_(IDS), tasks.c.id.in_(IDS)),
)
EVENTS_OF: Final = select(events.c.seq).where(events.c.task_id.in_(IDS)).limit(ROWS_MAX)
MESSAGES_OF: Final = select(messages.c.id).where(messages.c.task_id.in_(IDS)).limit(ROWS_MAX)
_DROP_MESSAGES: Final = delete(messages).where(messages.c.id.in_(IDS))
DROPS: Final = (
    delete(deliveries).where(deliveries.c.task_id.in_(IDS)),
    delete(task_needs).where(task_needs.c.task_id.in_(IDS)),
    delete(missing_dependencies).where(missing_dependencies.c.task_id.in_(IDS)),
    delete(task_dependencies).where(_edge.task_id.in_(IDS)),
    delete(tasks).where(tasks.c.id.in_(IDS)),
)
"""In this order: the last ones are what the others refer to. Who depends on them is among them."""


def step(tx: Tx, before_ms: int) -> Step:
    """Remove some tasks that ended before then, or, of tasks with very many rows, some of these first."""
    at, number = pruning.cursor(tx, kinds.TASKS)
    # At the beginning, and after the oldest one, it goes on with the newest.
    values = {"p_before": before_ms, "p_at": at or before_ms, "p_number": number}
    window = tx.all(NEXT_OLD, values)
    if not window:
        pruning.advance(tx, kinds.TASKS, 0, 0)
        return Step(0, more=False)
    chosen = _going(tx, [row.id for row in window], before_ms)
    if chosen:
        if not _empty(tx, chosen):
            return Step(0, more=True)
        for statement in DROPS:
            tx.run(statement, {"p_ids": chosen})
    pruning.advance(tx, kinds.TASKS, window[-1].completed_at, window[-1].id)
    return Step(len(chosen), more=True)


def _going(tx: Tx, ids: Sequence[int], before_ms: int) -> list[int]:
    _, newest, _ = pruning.newest_event(tx)
    free = [row.id for row in tx.all(FREE, {"p_ids": ids, "p_newest": newest, "p_before": before_ms})]
    needers: dict[int, list[Any]] = {}
    for task, needer in tx.all(NEEDERS, {"p_ids": ids}):
        needers.setdefault(task, []).append(needer)
    return sorted(going(free, needers))


def _empty(tx: Tx, ids: Sequence[int]) -> bool:
    """Remove events and messages of the tasks; say whether none are left."""
    seqs = [row.seq for row in tx.all(EVENTS_OF, {"p_ids": ids})]
    pruning.forget_events(tx, seqs)
    if len(seqs) == ROWS_MAX:
        return False
    found = [row.id for row in tx.all(MESSAGES_OF, {"p_ids": ids})]
    if found:
        tx.run(_DROP_MESSAGES, {"p_ids": found})
    return len(found) < ROWS_MAX
