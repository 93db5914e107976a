"""Undoing a cascade: a task is reopened, and with it what failed only because of it. One transaction on a ``Tx``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, select

from dispatch.core.lifecycle import Status
from dispatch.errors import TooLargeError
from dispatch.service import dependents, moves
from dispatch.service.rows import Ref, fetch
from dispatch.service.schema import missing_dependencies, task_dependencies, tasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

CASCADED: Final = "Blocked: dependency"
"""How the reason of a task begins that failed because of what it depends on."""
REOPENED_MAX: Final = 1_000
"""How many are reopened in one transaction: the writer has others to serve."""
BEHIND_MAX: Final = 100_000
_PAGE: Final = 500

_needed: Final = tasks.alias("needed")
_CASCADED: Final = (
    select(tasks.c.id)
    .join(task_dependencies, task_dependencies.c.task_id == tasks.c.id)
    .where(
        task_dependencies.c.depends_on_id.in_(bindparam("p_ids", expanding=True)),
        dependents.unindexed(tasks.c.status) == Status.FAILED.value,
        tasks.c.reason.startswith(CASCADED),
    )
    .distinct()
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
    found: dict[int, None] = {}
    level = {task_id}
    while level:
        level = {row.id for page in _pages(level) for row in tx.all(_CASCADED, page)} - found.keys() - {task_id}
        found |= dict.fromkeys(sorted(level))
        if len(found) > BEHIND_MAX:
            raise TooLargeError(
                f"More than {BEHIND_MAX} tasks behind task {task_id} were failed with it; reopen some of them first."
            )
    return list(found)


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
