"""Create tasks that depend on others, one or a whole graph, each request once.

Every function is one transaction on a ``Tx``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, insert, select

from dispatch.core.graph import find_cycle
from dispatch.errors import ConflictError, InvalidInputError, NotFoundError
from dispatch.service import dependencies, idempotency, tasks
from dispatch.service.leases import digest_of
from dispatch.service.rows import Ref, fetch
from dispatch.service.schema import task_needs
from dispatch.service.schema import tasks as table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

_OF_UUIDS: Final = select(table.c.id, table.c.uuid, table.c.project_id).where(
    table.c.uuid.in_(bindparam("p_uuids", expanding=True))
)
_NEED: Final = insert(task_needs)
_BY_ID: Final = "task_id"
_PAGE: Final = 500
"""Databases bound how many values a statement may have; a graph may name more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A task to create, with what it refers to by UUID. ``key`` makes its creation happen once."""

    task: tasks.NewTask
    parent: str | None = None
    depends_on: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    key: str | None = None
    name: str | None = None
    """What the caller calls it in a graph."""

    def digest(self) -> str:
        """Return the fingerprint of the request."""
        new = self.task
        facts = [getattr(new, name) for name in new.__dataclass_fields__]
        return digest_of("create", facts, self.parent, self.depends_on, self.needs)


def create(tx: Tx, project_id: int, actor: Actor, agent: str, plan: Plan) -> tuple[Any, bool]:
    """Create a task and return its row, and whether it is new.

    The same request again, known by its key or by its explicit UUID, returns
    what it made. Raises ConflictError (another request had the key or the UUID),
    InvalidInputError (something that it refers to), and NotFoundError (what it
    made is not kept any more).
    """
    digest = plan.digest()
    names = _names(project_id, agent, plan)
    for scope, key in names:
        found = idempotency.recall(tx, scope, key, digest)
        if found is not None:
            row = _made(tx, found, key)
            if row.project_id != project_id:
                break
            return row, False
    if plan.task.uuid is not None and tx.all(_OF_UUIDS, {"p_uuids": [plan.task.uuid]}):
        raise ConflictError(f"There is a task {plan.task.uuid} already, and this request would make another one.")
    if plan.task.uuid is not None and plan.task.uuid in (*plan.depends_on, plan.parent):
        raise InvalidInputError(f"Task {plan.task.uuid} cannot depend on itself or be its own parent.")
    known = _known(tx, project_id, [*plan.depends_on, *([plan.parent] if plan.parent else [])])
    row = _insert(tx, project_id, actor, plan, known)
    tx.emit("task.created", row, actor, moved=(None, row.status))
    if dependencies.arrived(tx, row, actor):
        dependencies.check_circle(tx, row.id)
    for scope, key in names:
        idempotency.remember(tx, scope, key, digest, row.id)
    return row, True


def create_graph(
    tx: Tx, project_id: int, actor: Actor, agent: str, plans: Sequence[Plan], key: str | None = None
) -> tuple[list[Any], bool]:
    """Create tasks that refer to each other by explicit UUIDs, all or none; return their rows in order.

    Raises InvalidInputError for a cycle (it names one), ConflictError as ``create``.
    """
    digest = digest_of("graph", [plan.digest() for plan in plans])
    scope = f"graph:{project_id}:{agent}"
    if key is not None:
        first = idempotency.recall(tx, scope, key, digest)
        if first is not None:
            uuids = [plan.task.uuid for plan in plans]
            rows = {row.uuid: row for row in tx.all(select(*table.c).where(table.c.uuid.in_(uuids)))}
            if any(uuid not in rows for uuid in uuids):
                raise idempotency.answer_gone(key)
            return [rows[uuid] for uuid in uuids], False
    inside = {str(plan.task.uuid) for plan in plans}
    _check_circles(plans, inside)
    outside = {
        name
        for plan in plans
        for name in (*plan.depends_on, *([plan.parent] if plan.parent else []))
        if name not in inside
    }
    known = _known(tx, project_id, outside)
    taken = tx.all(_OF_UUIDS, {"p_uuids": sorted(inside)})
    if taken:
        raise ConflictError(f"There is a task {taken[0].uuid} already, and this request would make another one.")
    fresh = [_insert(tx, project_id, actor, replace(plan, depends_on=(), parent=None), {}) for plan in plans]
    known |= {row.uuid: row.id for row in fresh}
    dependencies.link(tx, [(known[str(p.task.uuid)], known[uuid]) for p in plans for uuid in p.depends_on])
    made = [_connect(tx, row, plan, known) for row, plan in zip(fresh, plans, strict=True)]
    for row in made:
        tx.emit("task.created", row, actor, moved=(None, row.status))
    for row in [row for row in made if dependencies.arrived(tx, row, actor)]:
        dependencies.check_circle(tx, row.id)
    if key is not None:
        idempotency.remember(tx, scope, key, digest, made[0].id)
    return made, True


def _made(tx: Tx, task_id: int, key: str) -> Any:
    try:
        return fetch(tx, Ref(task_id))
    except NotFoundError:
        raise idempotency.answer_gone(key) from None


def _check_circles(plans: Sequence[Plan], inside: set[str]) -> None:
    called = {str(plan.task.uuid): plan.name or str(plan.task.uuid) for plan in plans}
    for what, refs in (
        ("depend on each other", {str(plan.task.uuid): plan.depends_on for plan in plans}),
        ("are each other's parents", {str(plan.task.uuid): (plan.parent or "",) for plan in plans}),
    ):
        cycle = find_cycle({name: [other for other in others if other in inside] for name, others in refs.items()})
        if cycle:
            names = [called[name] for name in cycle]
            raise InvalidInputError(f"The tasks {what} in a circle: {' -> '.join(names[:20])}.", cycle=names)


def _names(project_id: int, agent: str, plan: Plan) -> list[tuple[str, str]]:
    names = []
    if plan.key is not None:
        names.append((f"create:{project_id}:{agent}", plan.key))
    if plan.task.uuid is not None:
        names.append((f"{_BY_ID}:{project_id}", plan.task.uuid))
    return names


def _known(tx: Tx, project_id: int, uuids: Iterable[str]) -> dict[str, int]:
    """Return the numbers of tasks that must be there, in the same project. Raises InvalidInputError."""
    wanted = sorted(set(uuids))
    rows: dict[str, Any] = {}
    for start in range(0, len(wanted), _PAGE):
        rows |= {row.uuid: row for row in tx.all(_OF_UUIDS, {"p_uuids": wanted[start : start + _PAGE]})}
    missing = [uuid for uuid in wanted if uuid not in rows or rows[uuid].project_id != project_id]
    if missing:
        raise InvalidInputError(
            f"The project has no task {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''};"
            " tasks depend on and belong to tasks of their own project.",
            missing=missing[:256],
        )
    return {uuid: rows[uuid].id for uuid in wanted}


def _insert(tx: Tx, project_id: int, actor: Actor, plan: Plan, known: dict[str, int]) -> Any:
    new = plan.task if plan.parent is None else replace(plan.task, parent_id=known[plan.parent])
    row = tasks.insert_row(tx, project_id, actor, new, _found(plan, known))
    for name in plan.needs:
        tx.run(_NEED, {"task_id": row.id, "name": name})
    return row


def _found(plan: Plan, known: dict[str, int]) -> dependencies.Found:
    return dependencies.Found(tuple(sorted({known[uuid] for uuid in plan.depends_on})))


def _connect(tx: Tx, row: Any, plan: Plan, known: dict[str, int]) -> Any:
    values: dict[str, Any] = {} if plan.parent is None else {"parent_id": known[plan.parent]}
    if plan.depends_on:
        values["depends_on"] = _found(plan, known).text()
    if not values:
        return row
    return tx.one(table.update().where(table.c.id == row.id).values(**values).returning(*table.c))
