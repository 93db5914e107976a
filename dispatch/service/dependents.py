"""What stands behind a task. Every function is one transaction on a ``Tx``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, false, func, literal, select

from dispatch.core.lifecycle import FINISHED, Status
from dispatch.service import readiness, walks
from dispatch.service.rows import ALL
from dispatch.service.schema import task_dependencies, tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

BEHIND_MAX: Final = 10_000
READY_MAX: Final = 500
"""How many tasks one completion tells of, the most urgent first.

A subscriber has room for 2,000 frames, and the writer has others to serve.
"""
ENDED_BADLY: Final = frozenset(state.value for state in FINISHED if state is not Status.COMPLETED)
"""Stored states of a dependency that can never let its dependents run."""
_PAGE: Final = 500


def unindexed(column: Any) -> Any:
    """Return a column as an expression, so that a database does not begin with it: with all tasks in a state, say."""
    return func.coalesce(column, literal(None, column.type))


_BEHIND: Final = (
    select(tasks.c.id, tasks.c.uuid, tasks.c.title, tasks.c.status)
    .join(task_dependencies, task_dependencies.c.task_id == tasks.c.id)
    .where(task_dependencies.c.depends_on_id.in_(bindparam("p_ids", expanding=True)))
    .distinct()
    .order_by(tasks.c.id)
)
_needed: Final = tasks.alias("needed")
_OPEN: Final = (
    select(task_dependencies.c.task_id, func.count())
    .join(_needed, _needed.c.id == task_dependencies.c.depends_on_id)
    .where(
        task_dependencies.c.task_id.in_(bindparam("p_ids", expanding=True)),
        _needed.c.status != Status.COMPLETED.value,
    )
    .group_by(task_dependencies.c.task_id)
)


_ALL_BEHIND: Final = walks.behind(walks.met.c.status.not_in(sorted(FINISHED)), BEHIND_MAX + 1)


def behind(tx: Tx, task_id: int) -> tuple[Sequence[Any], int, bool]:
    """Return the unfinished tasks that wait for this one alone, how many stand behind it in all, and if it was cut.

    Rows have ``id uuid title status``. At most BEHIND_MAX are counted.
    """
    direct = [row for row in tx.all(_BEHIND, {"p_ids": [task_id]}) if Status(row.status) not in FINISHED]
    waiting: dict[int, int] = {}
    for start in range(0, len(direct), _PAGE):
        ids = [row.id for row in direct[start : start + _PAGE]]
        waiting |= {row[0]: row[1] for row in tx.all(_OPEN, {"p_ids": ids})}
    freed = [row for row in direct if waiting.get(row.id, 0) <= 1]
    count = len({row.id for row in tx.all(_ALL_BEHIND, {"p_ids": [task_id]})} - {task_id})
    return freed, count, count >= BEHIND_MAX


_READY: Final = (
    select(*ALL)
    .join(task_dependencies, task_dependencies.c.task_id == tasks.c.id)
    .where(
        task_dependencies.c.depends_on_id == bindparam("p_id"),
        unindexed(tasks.c.status) == Status.TODO.value,
        unindexed(tasks.c.held) == false(),
        ~readiness.waits,
    )
    .order_by(tasks.c.priority.desc(), tasks.c.id)
    .limit(READY_MAX)
)


def tell_ready(tx: Tx, task_id: int, actor: Actor) -> None:
    """Tell of the tasks that can be claimed now that this one is completed, of READY_MAX at most."""
    for row in tx.all(_READY, {"p_id": task_id}):
        tx.emit("task.ready", row, actor, note=f"dependency #{task_id} is completed")
