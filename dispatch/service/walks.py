"""Walks along dependencies: one statement for all that is before or behind some tasks, however deep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BindParameter, bindparam, select

from dispatch.service.schema import task_dependencies, tasks

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select

IDS: Final[BindParameter[Any]] = bindparam("p_ids", expanding=True)
met: Final = tasks.alias("met")
"""A task on the way, for the condition of a walk."""
_edges: Final = task_dependencies.c


def before(condition: ColumnElement[bool], limit: int) -> Select[tuple[int]]:
    """Return the statement for the numbers of tasks (``p_ids``) and of all that they need in the end.

    Tasks without ``condition``, and what is reached through them alone, are left out; ``limit`` are found at most.
    """
    return _walk(_edges.task_id, _edges.depends_on_id, condition, limit)


def behind(condition: ColumnElement[bool], limit: int) -> Select[tuple[int]]:
    """Return the statement for the numbers of tasks and of all that need them in the end, likewise."""
    return _walk(_edges.depends_on_id, _edges.task_id, condition, limit)


def _walk(here: Any, there: Any, condition: ColumnElement[bool], limit: int) -> Select[tuple[int]]:
    """Build the statement.

    The joins are ranges of one number. For an equation PostgreSQL may choose to read whole tables, on every level of
    the walk anew; a range it can only look up.
    """
    start = select(tasks.c.id).where(tasks.c.id.in_(IDS)).cte("walk", recursive=True)
    step = (
        select(there)
        .select_from(start)
        .join(task_dependencies, here.between(start.c.id, start.c.id))
        .join(met, met.c.id.between(there, there))
        .where(condition)
    )
    return select(start.union(step).c.id).limit(limit)
