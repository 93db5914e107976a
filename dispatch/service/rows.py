"""Finding and changing the row of one task: what every use case begins and ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, select, update

from dispatch.core.lifecycle import ATS_WORD, Status
from dispatch.errors import LeaseHeldError, NotFoundError, TaskError
from dispatch.service.schema import organizations, projects, tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

ALL: Final = tuple(tasks.c)

ATS_WORDS: Final[Mapping[str, str]] = {state.value: word for state, word in ATS_WORD.items()}
OWN_WORDS: Final[Mapping[str, str]] = {state.value: state.value for state in Status}
"""The Task Tools call each state by its name."""

_BY_ID: Final = select(*ALL).where(tasks.c.id == bindparam("p_id"))
_BY_ID_LOCKED: Final = _BY_ID.with_for_update()
_BY_IDS_LOCKED: Final = select(*ALL).where(tasks.c.id.in_(bindparam("p_ids", expanding=True))).with_for_update()
_ID_OF_UUID: Final = select(tasks.c.id).where(tasks.c.uuid == bindparam("p_uuid"))
_BELONGS: Final = select(tasks.c.project_id, tasks.c.holder_type, tasks.c.holder_id).where(
    tasks.c.id == bindparam("p_id")
)
_PROJECT: Final = (
    select(projects.c.id)
    .join(organizations, organizations.c.id == projects.c.organization_id)
    .where(organizations.c.slug == bindparam("p_org"), projects.c.slug == bindparam("p_project"))
)
_ID_IN_PROJECT: Final = select(tasks.c.id).where(
    tasks.c.id == bindparam("p_id"), tasks.c.project_id == _PROJECT.scalar_subquery()
)

SETTABLE: Final = (
    "status",
    "held",
    "holder_type",
    "holder_id",
    "holder_name",
    "held_since",
    "yields",
    "fencing_token",
    "claim_id",
    "runner",
    "lease_ms",
    "lease_expires_at",
    "attempts",
    "lease_losses",
    "not_before",
    "outputs",
    "result_hash",
    "reason",
    "entered_at",
    "started_at",
    "completed_at",
)
"""What a move may change."""

_SETTLE: Final = (
    update(tasks)
    .where(
        tasks.c.id == bindparam("p_id"),
        tasks.c.status == bindparam("p_from"),
        tasks.c.fencing_token == bindparam("p_token"),
    )
    .values({**{name: bindparam(f"p_{name}") for name in SETTABLE}, "updated_at": bindparam("p_now")})
    .returning(*ALL)
)


@dataclass(frozen=True, slots=True)
class Scope:
    """The project that a route names."""

    org: str
    project: str


@dataclass(frozen=True, slots=True)
class Ref:
    """How a caller names a task (number or UUID, and the project of the route if there is one) and its states."""

    ident: int | str
    scope: Scope | None = None
    within: frozenset[int] | None = None
    """Numbers of the projects that the caller may see; None means all."""
    reporter: Actor | None = None
    """Who says that the task is theirs by its fencing token, where API keys vouch for actors: then the token, which
    every reader sees, is not enough, and nobody else may hold the task."""
    words: Mapping[str, str] = field(default_factory=lambda: ATS_WORDS, compare=False)
    """What refusals call each state."""


def locate(tx: Tx, ref: Ref) -> int:
    """Return the number of the task. It may not exist if the caller gave a number.

    Raises NotFoundError, and LeaseHeldError when it is not the reporter's.
    """
    ident = ref.ident
    if isinstance(ident, str):
        found = tx.one(_ID_OF_UUID, {"p_uuid": ident})
        if found is None:
            raise no_task(ref)
        ident = int(found[0])
    if ref.scope is not None and not tx.one(
        _ID_IN_PROJECT, {"p_id": ident, "p_org": ref.scope.org, "p_project": ref.scope.project}
    ):
        raise no_task(ref)
    if ref.within is not None or ref.reporter is not None:
        _check_belongs(tx, ref, ident)
    return ident


def _check_belongs(tx: Tx, ref: Ref, ident: int) -> None:
    row = tx.one(_BELONGS, {"p_id": ident})
    if row is None or (ref.within is not None and row.project_id not in ref.within):
        raise no_task(ref)
    mine = ref.reporter
    if mine is not None and row.holder_id is not None and (row.holder_type, row.holder_id) != (mine.type, mine.id):
        raise LeaseHeldError(f"Task {ident} is held by {row.holder_id}, not by {mine.id}.", holder=row.holder_id)


def no_task(ref: Ref) -> NotFoundError:
    """Return the refusal for a task that does not exist where the caller looked."""
    where = f" in project {ref.scope.org}/{ref.scope.project}" if ref.scope else ""
    return NotFoundError(f"There is no task {ref.ident}{where}.")


def fetch(tx: Tx, ref: Ref) -> Any:
    """Return the task's row. Raises NotFoundError."""
    row = tx.one(_BY_ID, {"p_id": locate(tx, ref)})
    if row is None:
        raise no_task(ref)
    return row


def lock(tx: Tx, ref: Ref) -> Any:
    """Return the task's row, which nobody else changes until the transaction ends. Raises NotFoundError."""
    row = tx.one(_BY_ID_LOCKED, {"p_id": locate(tx, ref)})
    if row is None:
        raise no_task(ref)
    return row


def lock_many(tx: Tx, refs: Sequence[Ref]) -> list[Any | TaskError]:
    """Return for each task what ``lock`` returns or raises, with few statements for tasks that are named by numbers."""
    numbers = [ref.ident for ref in refs if isinstance(ref.ident, int)]
    rows = {row.id: row for row in tx.all(_BY_IDS_LOCKED, {"p_ids": numbers})}
    numbers_of = {scope: _project_of(tx, scope) for scope in {ref.scope for ref in refs if ref.scope is not None}}
    found: list[Any | TaskError] = []
    for ref in refs:
        if ref.reporter is not None or isinstance(ref.ident, str):
            found.append(_lock_or_refuse(tx, ref))
            continue
        row = rows.get(ref.ident)
        project = row.project_id if row is not None else None
        outside = ref.within is not None and project not in ref.within
        elsewhere = ref.scope is not None and project != numbers_of[ref.scope]
        found.append(no_task(ref) if row is None or outside or elsewhere else row)
    return found


def _project_of(tx: Tx, scope: Scope) -> int | None:
    found = tx.one(_PROJECT, {"p_org": scope.org, "p_project": scope.project})
    return None if found is None else int(found.id)


def _lock_or_refuse(tx: Tx, ref: Ref) -> Any | TaskError:
    try:
        return lock(tx, ref)
    except TaskError as refusal:
        return refusal


def settle(tx: Tx, row: Any, **changes: Any) -> Any:
    """Change ``SETTABLE`` columns of a locked row with one conditional update; return the new row.

    A ``status`` among the changes counts as entered now, even if it is the same.
    """
    if "status" in changes:
        changes["entered_at"] = tx.now_ms
    values = {f"p_{name}": changes[name] if name in changes else getattr(row, name) for name in SETTABLE}
    values |= {"p_id": row.id, "p_from": row.status, "p_token": row.fencing_token, "p_now": tx.now_ms}
    changed = tx.one(_SETTLE, values)
    if changed is None:
        raise AssertionError(f"task {row.id} changed under its lock")
    return changed
