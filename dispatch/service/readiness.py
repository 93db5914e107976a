"""What a task waits for: dependencies that are not completed, and names that no task has.

Every function is one transaction on a ``Tx``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, bindparam, exists, or_, select

from dispatch.core.lifecycle import Status
from dispatch.service.schema import missing_dependencies, task_dependencies, tasks

if TYPE_CHECKING:
    from dispatch.service.rows import Ref
    from dispatch.service.store import Tx

_needed: Final = tasks.alias("needed")
waits: Final = and_(
    tasks.c.depends_on.is_not(None),
    or_(
        exists()
        .where(
            task_dependencies.c.task_id == tasks.c.id,
            _needed.c.id == task_dependencies.c.depends_on_id,
            _needed.c.status != Status.COMPLETED.value,
        )
        .correlate(tasks),
        exists().where(missing_dependencies.c.task_id == tasks.c.id).correlate(tasks),
    ),
)
"""True of a task with a dependency that is not completed, or does not exist."""

_OPEN_DEPENDENCIES: Final = (
    select(_needed.c.id, _needed.c.uuid, _needed.c.status)
    .join(task_dependencies, task_dependencies.c.depends_on_id == _needed.c.id)
    .where(task_dependencies.c.task_id == bindparam("p_id"), _needed.c.status != Status.COMPLETED.value)
    .order_by(_needed.c.id)
)
_MISSING: Final = (
    select(missing_dependencies.c.name)
    .where(missing_dependencies.c.task_id == bindparam("p_id"))
    .order_by(missing_dependencies.c.name)
)
MISSING: Final = "missing"
"""What stands for the status of a dependency that does not exist."""


def open_dependencies(tx: Tx, task_id: int) -> list[Any]:
    """Return (id, status) of what the task waits for."""
    return list(tx.all(_OPEN_DEPENDENCIES, {"p_id": task_id}))


def missing_names(tx: Tx, task_id: int) -> list[str]:
    """Return the names that the task depends on and no task of its project has."""
    return [row.name for row in tx.all(_MISSING, {"p_id": task_id})]


def waits_for(tx: Tx, ref: Ref, row: Any) -> list[dict[str, Any]]:
    """Return what a task waits for, as a refusal shows it: ``id task_id status``, or the name that no task has."""
    found: list[dict[str, Any]] = [
        {"id": one.id, "task_id": one.uuid, "status": ref.words[one.status]} for one in open_dependencies(tx, row.id)
    ]
    return found + [
        {"id": int(name) if name.isdigit() else None, "task_id": None, "name": name, "status": MISSING}
        for name in missing_names(tx, row.id)
    ]


def called(item: dict[str, Any]) -> str:
    """Return how one of ``waits_for`` is called."""
    return f"#{item['id']}" if item["id"] is not None else str(item["name"])
