"""What a task depends on: read from a request, stored, changed, found when it comes into being.

Edges are in ``task_dependencies``. A payload may name tasks that do not exist
yet: these names are in ``missing_dependencies`` until a task of the same
project gets them. ``tasks.depends_on`` is what clients see of both, written in
the same transaction. Except for ``asked``, every function is one transaction
on a ``Tx``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, cast, delete, exists, insert, select, update

from dispatch.core.dependencies import DEPENDENCIES_MAX, named_in
from dispatch.core.lifecycle import Status
from dispatch.errors import InvalidInputError, UnexpectedStatusError
from dispatch.service import dependents, doomed, wire
from dispatch.service.rows import ALL
from dispatch.service.schema import Id, missing_dependencies, task_dependencies, tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.rows import Ref
    from dispatch.service.store import Tx

_UNCHANGEABLE: Final = frozenset({Status.IN_PROGRESS.value, Status.IN_REVIEW.value})

_PAGE: Final = 500
_BY_NUMBER: Final = select(tasks.c.id, tasks.c.uuid).where(
    tasks.c.id.in_(bindparam("p_ids", expanding=True)), tasks.c.project_id == bindparam("p_project")
)
_BY_UUID: Final = select(tasks.c.id, tasks.c.uuid).where(
    tasks.c.uuid.in_(bindparam("p_uuids", expanding=True)), tasks.c.project_id == bindparam("p_project")
)
_CONNECT: Final = insert(task_dependencies)
_MISS: Final = insert(missing_dependencies)
_DISCONNECT: Final = (
    delete(task_dependencies).where(task_dependencies.c.task_id == bindparam("p_id")),
    delete(missing_dependencies).where(missing_dependencies.c.task_id == bindparam("p_id")),
)
_SHOW: Final = (
    update(tasks)
    .where(tasks.c.id == bindparam("p_id"))
    .values(depends_on=bindparam("p_text"), updated_at=bindparam("p_now"))
    .returning(*ALL)
)

_called: Final = missing_dependencies.c.name.in_(bindparam("p_names", expanding=True))
_ours: Final = (
    exists()
    .where(tasks.c.id == missing_dependencies.c.task_id, tasks.c.project_id == bindparam("p_project"))
    .correlate(missing_dependencies)
)
_AWAITING: Final = select(missing_dependencies.c.name).where(_called).limit(1)
_RESOLVE: Final = insert(task_dependencies).from_select(
    ["task_id", "depends_on_id"],
    select(missing_dependencies.c.task_id, cast(bindparam("p_new"), Id)).where(_called, _ours).distinct(),
)
_FORGET: Final = delete(missing_dependencies).where(_called, _ours)
_CALLED_BY_UUID: Final = (
    select(*ALL)
    .join(missing_dependencies, missing_dependencies.c.task_id == tasks.c.id)
    .where(missing_dependencies.c.name == bindparam("p_uuid"), tasks.c.project_id == bindparam("p_project"))
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants a task to depend on.

    ``is_strict``: by the field, where unknown names and circles are refused;
    through a payload they are kept.
    """

    names: tuple[int | str, ...]
    is_strict: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What the names stand for: tasks of the project, and names that none of them has."""

    ids: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()

    def text(self) -> str | None:
        """Return what clients see: numbers, then names that are no numbers; None for nothing."""
        numbers = sorted({*self.ids, *(int(name) for name in self.missing if name.isdigit())})
        shown = [*numbers, *(name for name in self.missing if not name.isdigit())]
        return wire.dumps(shown) if shown else None


def of_payload(payload: str | None) -> tuple[int | str, ...] | None:
    """Return what a payload, as JSON text, names. Raises InvalidInputError when it is too much."""
    if payload is None or '"depends_on"' not in payload:
        return None
    names = named_in(json.loads(payload))
    if names is not None and len(names) > DEPENDENCIES_MAX:
        raise InvalidInputError(
            f"payload.depends_on names {len(names)} tasks; a task depends on at most {DEPENDENCIES_MAX}."
        )
    return names


def asked(fields: dict[str, Any]) -> Asked | None:
    """Take ``depends_on`` out of a request's fields and compare it with its payload; None when neither says anything.

    Raises InvalidInputError when they differ.
    """
    by_payload = of_payload(fields.get("payload"))
    if "depends_on" not in fields:
        return None if by_payload is None else Asked(by_payload, is_strict=False)
    names: tuple[int | str, ...] = fields.pop("depends_on")
    if by_payload is not None and set(by_payload) != set(names):
        raise InvalidInputError(
            "depends_on and payload.depends_on name different tasks; give one of them, or the same in both."
        )
    return Asked(names, is_strict=True)


def find(tx: Tx, project_id: int, wish: Asked) -> Found:
    """Look the names up among the tasks of a project. Raises InvalidInputError, naming them, if they must exist."""
    numbers = [name for name in wish.names if isinstance(name, int)]
    texts = [name for name in wish.names if isinstance(name, str)]
    found: dict[int | str, int] = {}
    if numbers:
        found |= {row.id: row.id for row in tx.all(_BY_NUMBER, {"p_ids": numbers, "p_project": project_id})}
    if texts:
        found |= {row.uuid: row.id for row in tx.all(_BY_UUID, {"p_uuids": texts, "p_project": project_id})}
    missing = [name for name in wish.names if name not in found]
    if missing and wish.is_strict:
        shown = ", ".join(f"#{name}" if isinstance(name, int) else name for name in missing[:5])
        raise InvalidInputError(
            f"The project has no task {shown}{' and others' if len(missing) > 5 else ''};"
            " tasks depend on tasks of their own project.",
            missing=missing,
        )
    return Found(tuple(sorted(set(found.values()))), tuple(dict.fromkeys(str(name) for name in missing)))


def link(tx: Tx, edges: Sequence[tuple[int, int]]) -> None:
    """Write which task depends on which, many at once: a graph may have tens of thousands of edges."""
    for start in range(0, len(edges), _PAGE):
        rows = [{"task_id": task, "depends_on_id": needed} for task, needed in edges[start : start + _PAGE]]
        tx.run(_CONNECT.values(rows))


def connect(tx: Tx, task_id: int, found: Found) -> None:
    """Write the edges of a task that has none."""
    link(tx, [(task_id, ident) for ident in found.ids])
    for name in found.missing:
        tx.run(_MISS, {"task_id": task_id, "name": name})


def check_circle(tx: Tx, task_id: int) -> None:
    """Raise InvalidInputError, which names the circle, if the task depends on itself in the end."""
    circle = doomed.circle(tx, task_id, only_open=False)
    if circle:
        raise InvalidInputError(f"The tasks depend on each other in a circle: {doomed.shown(circle)}.", cycle=circle)


def replace(tx: Tx, ref: Ref, row: Any, wish: Asked) -> Any:
    """Let a locked task depend on other tasks than before; return its row. The caller tells of it.

    Raises UnexpectedStatusError once it has begun, InvalidInputError for what
    does not exist or makes a circle.
    """
    found = find(tx, row.project_id, wish)
    text = found.text()
    if text == row.depends_on:
        return row
    if row.status in _UNCHANGEABLE:
        word = ref.words[row.status]
        raise UnexpectedStatusError(
            f"Task {row.id} is in {word} status; what it depends on can be changed only while it is not begun.",
            next_step="Release or finish the task first.",
            status=word,
        )
    for statement in _DISCONNECT:
        tx.run(statement, {"p_id": row.id})
    connect(tx, row.id, found)
    changed = tx.one(_SHOW, {"p_id": row.id, "p_text": text, "p_now": tx.now_ms})
    if wish.is_strict:
        check_circle(tx, row.id)
    return changed


def changed_by_payload(before: str | None, after: str | None) -> Asked | None:
    """Return what a new payload wants other than the old one did, or None."""
    old, new = of_payload(before), of_payload(after)
    return None if old == new else Asked(new or (), is_strict=False)


def arrived(tx: Tx, row: Any, actor: Actor) -> bool:
    """Connect those who named a task before it came into being; say whether there were any."""
    called = {"p_names": [str(row.id), row.uuid]}
    if tx.one(_AWAITING, called) is None:
        return False
    names = {**called, "p_project": row.project_id}
    by_uuid = tx.all(_CALLED_BY_UUID, {"p_uuid": row.uuid, "p_project": row.project_id})
    tx.run(_RESOLVE, {**names, "p_new": row.id})
    tx.run(_FORGET, names)
    for one in by_uuid:
        _renumber(tx, one, row, actor)
    if row.status == Status.COMPLETED:
        dependents.tell_ready(tx, row.id, actor)
    return True


def _renumber(tx: Tx, one: Any, new: Any, actor: Actor) -> None:
    """Show a dependency by its number, now that it has one."""
    shown: Sequence[int | str] = json.loads(one.depends_on)
    numbers = sorted({new.id, *(name for name in shown if isinstance(name, int))})
    text = wire.dumps([*numbers, *(name for name in shown if isinstance(name, str) and name != new.uuid)])
    changed = tx.one(_SHOW, {"p_id": one.id, "p_text": text, "p_now": tx.now_ms})
    tx.emit("task.updated", changed, actor, note=f"dependency {new.uuid} exists now: #{new.id}")
