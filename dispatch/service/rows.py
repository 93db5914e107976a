"""Finding and changing the row of one task: what every use case begins and ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, select, update

from dispatch.core.lifecycle import ATS_WORD, Status
from dispatch.errors import NotFoundError
from dispatch.service.schema import organizations, projects, tasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.service.store import Tx

ALL: Final = tuple(tasks.c)

ATS_WORDS: Final[Mapping[str, str]] = {state.value: word for state, word in ATS_WORD.items()}
OWN_WORDS: Final[Mapping[str, str]] = {state.value: state.value for state in Status}
"""The Task Tools call each state by its name."""

_BY_ID: Final = select(*ALL).where(tasks.c.id == bindparam("p_id"))
_BY_ID_LOCKED: Final = _BY_ID.with_for_update()
_ID_OF_UUID: Final = select(tasks.c.id).where(tasks.c.uuid == bindparam("p_uuid"))
_PROJECT_OF: Final = select(tasks.c.project_id).where(tasks.c.id == bindparam("p_id"))
_ID_IN_PROJECT: Final = (
    select(tasks.c.id)
    .join(projects, projects.c.id == tasks.c.project_id)
    .join(organizations, organizations.c.id == projects.c.organization_id)
    .where(
        tasks.c.id == bindparam("p_id"),
        organizations.c.slug == bindparam("p_org"),
        projects.c.slug == bindparam("p_project"),
    )
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
    words: Mapping[str, str] = field(default_factory=lambda: ATS_WORDS, compare=False)
    """What refusals call each state."""


def locate(tx: Tx, ref: Ref) -> int:
    """Return the number of the task. It may not exist if the caller gave a number. Raises NotFoundError."""
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
    if ref.within is not None:
        project = tx.one(_PROJECT_OF, {"p_id": ident})
        if project is None or project[0] not in ref.within:
            raise no_task(ref)
    return ident


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
