"""Undoing a cascade: a task is reopened, and with it what failed only because of it. One transaction on a ``Tx``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, bindparam, select

from dispatch.core.graph import REASON_BEGINS, dependents_of
from dispatch.core.graph import cascade as everything_behind
from dispatch.core.lifecycle import Status
from dispatch.errors import TooLargeError
from dispatch.service import dependents, moves, walks
from dispatch.service.rows import Ref, fetch
from dispatch.service.schema import missing_dependencies, task_dependencies, tasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

REOPENED_MAX: Final = 1_000
"""How many are reopened in one transaction: the writer has others to serve."""
BEHIND_MAX: Final = 100_000
_PAGE: Final = 500

_needed: Final = tasks.alias("needed")
_CASCADED: Final = walks.behind(
    and_(dependents.unindexed(walks.met.c.status) == Status.FAILED.value, walks.met.c.reason.startswith(REASON_BEGINS)),
    BEHIND_MAX + 2,
)
_NEEDED: Final = select(task_dependencies.c.task_id, task_dependencies.c.depends_on_id).where(
    task_dependencies.c.task_id.in_(bindparam("p_ids", expanding=True))
)
_BAD: Final = (
    select(task_dependencies.c.task_id, task_dependencies.c.depends_on_id)
    .join(_needed, _needed.c.id == task_dependencies.c.depends_on_id)
    .where(
        task_dependencies.c.task_id.in_(bindparam("p_ids", expanding=True)),
        dependents.unindexed(_needed.c.status).in_(sorted(dependents.ENDED_BADLY)),
    )
)
_LACKING: Final = (
    select(missing_dependencies.c.task_id)
    .where(missing_dependencies.c.task_id.in_(bindparam("p_ids", expanding=True)))
    .distinct()
)


@dataclass(frozen=True, slots=True)
class Reopened:
    """The task itself, those behind it that were reopened, and the ids of those that another failure keeps."""

    task: Any
    dependents: list[Any]
    kept: list[int]
    more: bool
    """Whether there are others to reopen: make the same call again."""


def reopen(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None) -> Reopened:
    """Reopen a task and what failed only because of it.

    A task that is not ended, or that completed meanwhile, stays as it is, and
    only what stands behind it is reopened. Of more than REOPENED_MAX the farthest
    come first, so that a repetition still finds its way to the others. Raises
    TooLargeError, NotFoundError.
    """
    row = fetch(tx, ref)
    if row.status in dependents.ENDED_BADLY:
        row = moves.reopen(tx, ref, actor, reason=reason)
    found = _behind(tx, row.id)
    kept = _kept(tx, set(found), root=row.id)
    free = [ident for ident in found if ident not in kept]
    note = reason or f"reopened with #{row.id}"
    chosen = sorted(free[-REOPENED_MAX:])
    made = [moves.reopen(tx, Ref(ident, words=ref.words), actor, reason=note) for ident in chosen]
    return Reopened(fetch(tx, ref), made, sorted(kept), more=len(free) > REOPENED_MAX)


def _pages(ids: Iterable[int]) -> Iterator[dict[str, list[int]]]:
    ordered = sorted(ids)
    for start in range(0, len(ordered), _PAGE):
        yield {"p_ids": ordered[start : start + _PAGE]}


def _behind(tx: Tx, task_id: int) -> list[int]:
    """Return every task behind this one that a cascade failed, however deep, the nearest first."""
    found = {row.id for row in tx.all(_CASCADED, {"p_ids": [task_id]})}
    if len(found) > BEHIND_MAX + 1:
        raise TooLargeError(
            f"More than {BEHIND_MAX} tasks behind task {task_id} were failed with it; reopen some of them first."
        )
    needs: dict[int, list[int]] = {ident: [] for ident in sorted(found)}
    for page in _pages(found):
        for one, other in tx.all(_NEEDED, page):
            needs[one].append(other)
    return everything_behind(dependents_of(needs), task_id)


def _kept(tx: Tx, found: set[int], *, root: int) -> set[int]:
    """Return those that would fail again at once: something else that they need ended badly, or does not exist."""
    needs: dict[int, list[int]] = {}
    kept: set[int] = set()
    for page in _pages(found):
        for row in tx.all(_BAD, page):
            if row.depends_on_id not in found:
                kept.add(row.task_id)
            else:
                needs.setdefault(row.depends_on_id, []).append(row.task_id)
        kept |= {row.task_id for row in tx.all(_LACKING, page)}
    pending = list(kept)
    while pending:
        for behind in needs.get(pending.pop(), ()):
            if behind not in kept:
                kept.add(behind)
                pending.append(behind)
    return kept - {root}
