"""Which tasks can never run: what they need ended badly, does not exist, or waits for itself. On a ``Tx``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, select

from dispatch.core.graph import find_cycle, reaching_cycle
from dispatch.core.lifecycle import Status
from dispatch.service import walks
from dispatch.service.dependents import ENDED_BADLY, unindexed
from dispatch.service.schema import missing_dependencies, task_dependencies, tasks
from dispatch.service.walks import IDS

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from dispatch.service.store import Tx

CIRCLE_TASKS_MAX: Final = 10_000
"""How many tasks are looked at in search of a circle; what lies farther away is not."""
_PAGE: Final = 500

_edges: Final = task_dependencies.c

_needed: Final = tasks.alias("needed")
_ENDS: Final = (
    select(_edges.task_id, _needed.c.status)
    .join(_needed, _needed.c.id == _edges.depends_on_id)
    .where(_edges.task_id.in_(IDS))
    .distinct()
)
_MISSING: Final = select(missing_dependencies.c.task_id).where(missing_dependencies.c.task_id.in_(IDS)).distinct()
_AMONG: Final = select(_edges.task_id, _edges.depends_on_id).where(
    _edges.task_id.in_(IDS), unindexed(_edges.depends_on_id).in_(bindparam("p_others", expanding=True))
)


_BEFORE: Final = walks.before(walks.met.c.status != bindparam("p_passed"), CIRCLE_TASKS_MAX)
_NEEDS: Final = (
    select(_edges.task_id, _edges.depends_on_id)
    .join(_needed, _needed.c.id == _edges.depends_on_id)
    .where(_edges.task_id.in_(IDS), _needed.c.status != bindparam("p_passed"))
    .order_by(_edges.task_id, _edges.depends_on_id)
)


def _needs_before(tx: Tx, task_ids: Sequence[int], *, only_open: bool) -> dict[int, list[int]]:
    """Return what each of the tasks, and each that they need in the end, needs itself."""
    passed = {"p_passed": Status.COMPLETED.value if only_open else ""}
    before = sorted(row.id for row in tx.all(_BEFORE, {"p_ids": task_ids, **passed}))
    needs: dict[int, list[int]] = {}
    for start in range(0, len(before), _PAGE):
        for one, other in tx.all(_NEEDS, {"p_ids": before[start : start + _PAGE], **passed}):
            needs.setdefault(one, []).append(other)
    return needs


def circle(tx: Tx, task_id: int, *, only_open: bool = True) -> list[int]:
    """Return a circle among what the task depends on, its first task again at its end, or an empty list.

    ``only_open`` passes over what is completed: nothing waits for it.
    """
    return find_cycle(_needs_before(tx, [task_id], only_open=only_open))


def shown(ids: Sequence[int]) -> str:
    """Return a way through tasks as people read it."""
    names = [f"#{ident}" for ident in ids]
    return " -> ".join(names if len(names) <= 20 else [*names[:19], "...", names[-1]])


class Doomed:
    """Those of some tasks that can never run. Asks the database about all of them at once, and for circles last."""

    def __init__(self, tx: Tx, task_ids: Sequence[int]) -> None:
        self._tx = tx
        self._ids = task_ids
        ids = {"p_ids": task_ids}
        self._found = {row.task_id for row in tx.all(_ENDS, ids) if row.status in ENDED_BADLY}
        self._found |= {row.task_id for row in tx.all(_MISSING, ids)}
        self._needs: dict[int, list[int]] = {}
        if len(task_ids) > 1:
            for one, other in tx.all(_AMONG, {**ids, "p_others": task_ids}):
                self._needs.setdefault(one, []).append(other)
        self._in_circles: set[int] | None = None

    def has(self, task_id: int, failing: Container[int] = ()) -> bool:
        """Say whether one of the tasks can never run, given that ``failing`` of them are about to be failed."""
        if task_id in self._found or any(one in failing for one in self._needs.get(task_id, ())):
            return True
        if self._in_circles is None:
            self._in_circles = reaching_cycle(_needs_before(self._tx, self._ids, only_open=True))
        return task_id in self._in_circles
