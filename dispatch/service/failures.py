"""Failing very many tasks in one transaction on a ``Tx``: a cascade.

Each task is judged by itself, in order, exactly as ``moves.fail`` judges one; they are written together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import JSON, String, bindparam, cast, column, func, update

from dispatch.core.lifecycle import Status
from dispatch.errors import TaskError
from dispatch.service import leases, moves
from dispatch.service.doomed import Doomed
from dispatch.service.rows import ALL, Ref, lock_many
from dispatch.service.schema import Id, tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

_end: Final = (
    func.json_each(bindparam("p_ends", type_=JSON))
    .table_valued(column("key", String), column("value", JSON), name="ends")
    .c
)
# One message to the database: a JSON object of number -> [reason, digest], which both kinds of database can take apart.
_FAIL: Final = (
    update(tasks)
    .where(tasks.c.id == cast(_end.key, Id))
    .values(
        **leases.UNHELD,
        status=Status.FAILED.value,
        reason=_end.value[0].as_string(),
        result_hash=_end.value[1].as_string(),
        completed_at=bindparam("p_now"),
        entered_at=bindparam("p_now"),
        updated_at=bindparam("p_now"),
    )
    .returning(*ALL)
)


@dataclass(frozen=True, slots=True)
class _End:
    """A locked row, its way to failed, and why."""

    row: Any
    steps: tuple[Status, ...]
    reason: str | None


def fail_many(tx: Tx, items: Sequence[tuple[Ref, str | None]], actor: Actor) -> list[Any | TaskError]:
    """Fail each task with its reason, in order; one that is refused changes nothing and does not hinder the others."""
    rows = lock_many(tx, [ref for ref, _ in items])
    doomed = Doomed(tx, [row.id for row in rows if not isinstance(row, TaskError)])
    ends: dict[int, _End] = {}
    done: dict[int, Any] = {}
    failing: set[int] = set()
    found: list[Any | TaskError] = []
    for (ref, reason), row in zip(items, rows, strict=True):
        if isinstance(row, TaskError):
            found.append(row)
            continue
        if row.id in ends:
            # Named again: that is judged by what the first time made of the task.
            done |= _write(tx, ends, actor)
            ends.clear()
        now = done.get(row.id, row)
        try:
            steps = moves.steps_to_fail(tx, ref, now, actor, reason, lambda: doomed.has(row.id, failing))  # noqa: B023
        except TaskError as refusal:
            found.append(refusal)
            continue
        if steps:
            ends[row.id] = _End(now, steps, reason)
            failing.add(row.id)
        else:
            done[row.id] = now
        found.append(row)
    done |= _write(tx, ends, actor)
    return [one if isinstance(one, TaskError) else done[one.id] for one in found]


def _write(tx: Tx, ends: Mapping[int, _End], actor: Actor) -> dict[int, Any]:
    """Fail tasks and tell of it, in order; return their rows."""
    if not ends:
        return {}
    wanted = {ident: (end.reason, moves.digest_of_failure(end.reason)) for ident, end in ends.items()}
    rows = {row.id: row for row in tx.all(_FAIL, {"p_ends": wanted, "p_now": tx.now_ms})}
    if rows.keys() != ends.keys():
        raise AssertionError(f"tasks {sorted(ends.keys() - rows.keys())} changed under their lock")
    for ident, end in ends.items():
        moves.tell(tx, end.row, rows[ident], end.steps, actor, end.reason)
    return rows
