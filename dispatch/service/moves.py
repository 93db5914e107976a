"""Complete, fail, cancel, reject, reopen, and moves by name: how a task changes state.

Every function is one transaction on a ``Tx`` and returns the task's row. What
is legal is the lifecycle's to say; every step is written to the history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.core.lifecycle import ATS_WORD, FINISHED, MOVES, Status, Verb, is_legal, path
from dispatch.errors import IllegalMoveError
from dispatch.service import leases, wire
from dispatch.service.events import STEP
from dispatch.service.rows import Ref, lock, settle

if TYPE_CHECKING:
    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

_EVENT_OF: Final = {
    Status.COMPLETED: "task.completed",
    Status.FAILED: "task.failed",
    Status.CANCELLED: "task.cancelled",
    Status.SKIPPED: "task.rejected",
}
_UNHELD: Final = {"held": False, "claim_id": None, "lease_expires_at": None}
_UNASSIGNED: Final = {**_UNHELD, "holder_type": None, "holder_id": None, "holder_name": None, "runner": None}
_AFRESH: Final = {"attempts": 0, "lease_losses": 0, "not_before": None, "result_hash": None}


def _effects(row: Any, target: Status, now_ms: int) -> dict[str, Any]:
    """Return what entering ``target`` changes besides the status."""
    if target in FINISHED:
        return {**_UNHELD, "completed_at": now_ms}
    if target is Status.IN_REVIEW:
        return dict(_UNHELD)
    changes: dict[str, Any] = {**_UNASSIGNED, "completed_at": None}
    if row.status in FINISHED:
        changes |= {**_AFRESH, "outputs": None, "reason": None}
    elif row.status == Status.IN_REVIEW:
        changes |= _AFRESH
    elif row.status == Status.IN_PROGRESS and row.runner is not None:
        changes["attempts"] = row.attempts - 1
    return changes


def _walk(tx: Tx, row: Any, steps: tuple[Status, ...], actor: Actor, *, note: str | None = None, **changes: Any) -> Any:
    """Move a locked row along ``steps`` in one update and write every step to the history."""
    target = steps[-1]
    settled = settle(tx, row, status=target.value, **{**_effects(row, target, tx.now_ms), **changes})
    came: str = row.status
    for step in steps[:-1]:
        tx.emit(STEP, settled, actor, moved=(came, step.value))
        came = step.value
    kind = _EVENT_OF.get(target, "task.updated")
    if target is Status.TODO and row.status in FINISHED:
        kind = "task.reopened"
    tx.emit(kind, settled, actor, moved=(came, target.value), note=note)
    return settled


def _is_repeat(row: Any, actor: Actor, token: int | None, digest: str, ended: frozenset[Status]) -> bool:
    """Say whether this very report ended the attempt already, so that its answer was lost."""
    if row.status not in ended or row.result_hash != digest:
        return False
    return bool(token == row.fencing_token) if token is not None else leases.is_holder(row, actor)


def complete(tx: Tx, ref: Ref, actor: Actor, *, outputs: list[Any] | None = None, token: int | None = None) -> Any:
    """End the task well, or hand it to review when it asks for that; from review, approve it.

    Raises StaleLeaseError, LeaseHeldError, IllegalMoveError, NotFoundError.
    """
    row = lock(tx, ref)
    digest = leases.digest_of("complete", outputs)
    if _is_repeat(row, actor, token, digest, frozenset({Status.COMPLETED, Status.IN_REVIEW})):
        return row
    leases.check_right(tx, row, actor, token)
    steps = path(Verb.COMPLETE, Status(row.status), needs_review=row.needs_review)
    changes: dict[str, Any] = {"reason": None}
    if outputs is not None:
        changes["outputs"] = wire.dumps(outputs)
    if row.status == Status.IN_PROGRESS:
        changes["result_hash"] = digest
    return _walk(tx, row, steps, actor, **changes)


def fail(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None, token: int | None = None) -> Any:
    """End the task badly. From todo only when a dependency failed.

    Raises StaleLeaseError, LeaseHeldError, IllegalMoveError, NotFoundError.
    """
    row = lock(tx, ref)
    digest = leases.digest_of("fail", reason)
    if _is_repeat(row, actor, token, digest, frozenset({Status.FAILED})):
        return row
    leases.check_right(tx, row, actor, token)
    doomed = row.status == Status.TODO and leases.has_failed_dependency(tx, row.id)
    steps = path(Verb.FAIL, Status(row.status), dependency_failed=doomed)
    return _walk(tx, row, steps, actor, note=reason, reason=reason, result_hash=digest)


def _by_verb(tx: Tx, ref: Ref, actor: Actor, verb: Verb, reason: str | None) -> Any:
    row = lock(tx, ref)
    return _walk(tx, row, path(verb, Status(row.status)), actor, note=reason, reason=reason)


def cancel(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None) -> Any:
    """Stop the task, whoever holds it. Raises IllegalMoveError, NotFoundError."""
    return _by_verb(tx, ref, actor, Verb.CANCEL, reason)


def reject(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None) -> Any:
    """Decline a task that nobody has begun. Raises IllegalMoveError, NotFoundError."""
    return _by_verb(tx, ref, actor, Verb.REJECT, reason)


def reopen(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None) -> Any:
    """Offer a finished task again, its counters and outputs cleared. Raises IllegalMoveError, NotFoundError."""
    return _by_verb(tx, ref, actor, Verb.REOPEN, reason)


def move(tx: Tx, ref: Ref, row: Any, target: Status, actor: Actor, *, default_lease_ms: int) -> Any:
    """Move a locked row to ``target`` if the table allows it: a status that a client sets by name.

    To in_progress is a claim, from in_progress to todo a release. Raises
    IllegalMoveError, LeaseHeldError, NotReadyError.
    """
    current = Status(row.status)
    if not is_legal(current, target):
        raise IllegalMoveError(
            current=ATS_WORD[current], target=ATS_WORD[target], allowed=sorted(ATS_WORD[s] for s in MOVES[current])
        )
    if current is Status.TODO and target is Status.IN_PROGRESS:
        return leases.claim(tx, ref, actor, lease_ms=default_lease_ms).task
    if current is Status.IN_PROGRESS and target is not Status.CANCELLED:
        leases.check_right(tx, row, actor, None)
    if current is Status.IN_PROGRESS and target is Status.TODO:
        return leases.give_back(tx, row, actor)
    return _walk(tx, row, (target,), actor)
