"""The Task Tools' advisory lock: take it, take it and start, let it go, force it open.

It is the same lock as the lease of an ATS claim: one holder, one token, one
expiry. What differs is that it may be held in any state that is not finished,
and that starting is part of the claim, because an agent starts at once. Every
function is one transaction on a ``Tx``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.core.lifecycle import FINISHED, MOVES, Status, check_move
from dispatch.errors import IllegalMoveError
from dispatch.service import leases
from dispatch.service.access import agent_uuid
from dispatch.service.rows import Ref, lock, settle

if TYPE_CHECKING:
    from dispatch.ats.model import Actor
    from dispatch.service.leases import Granted
    from dispatch.service.store import Tx

_NOT_BEGUN: Final = frozenset({Status.BACKLOG, Status.TODO, Status.BLOCKED})

RECOVERABLE: Final = (Status.TODO, Status.FAILED, Status.IN_REVIEW)
"""Where a stuck task may be put."""


def _grant(tx: Tx, row: Any, actor: Actor, lease_ms: int | None) -> dict[str, Any]:
    """Return the columns of a new grant to ``actor``."""
    return {
        "held": True,
        "yields": False,
        "holder_type": actor.type,
        "holder_id": actor.id,
        "holder_name": actor.name,
        "held_since": tx.now_ms,
        "fencing_token": row.fencing_token + 1,
        "claim_id": None,
        "result_hash": None,
        **leases.lasting(tx, lease_ms),
    }


def starting(tx: Tx, row: Any, actor: Actor) -> dict[str, Any]:
    """Return the columns of an attempt that an agent begins itself."""
    return {
        "runner": agent_uuid(actor.type, actor.id),
        "attempts": row.attempts + 1,
        "started_at": tx.now_ms,
        "not_before": None,
        "reason": None,
    }


def kept(tx: Tx, row: Any) -> dict[str, Any]:
    """Return the columns of a lock that its holder keeps: it lasts its full length from now."""
    return {
        "held": True,
        "yields": False,
        **leases.lasting(tx, row.lease_ms if row.lease_expires_at is not None else None),
    }


def _check_lockable(tx: Tx, ref: Ref, row: Any, actor: Actor) -> None:
    """Raise unless ``actor`` may take the lock of a task that it does not hold."""
    if row.held and not row.yields:
        raise leases.held_by_another(tx, ref, row)
    if Status(row.status) in FINISHED:
        raise IllegalMoveError(
            current=ref.words[row.status],
            target="claim",
            allowed=_moves_of(ref, row),
            next_step=f"Choose another task, or move it to {ref.words[Status.TODO]} to have it done again.",
        )
    if Status(row.status) in _NOT_BEGUN:
        leases.check_ready(tx, ref, row, actor)


def _moves_of(ref: Ref, row: Any) -> list[str]:
    return sorted(ref.words[state] for state in MOVES[Status(row.status)])


def take(tx: Tx, ref: Ref, actor: Actor, *, lease_ms: int | None, note: str | None = None) -> tuple[Granted, bool]:
    """Lock the task for ``actor`` in whatever unfinished state it is; return the grant and whether it was held already.

    The holder's own repetition keeps the token and extends the lock. A lock
    that was handed to review gives way. Raises LeaseHeldError, NotReadyError,
    AssignedElsewhereError, IllegalMoveError, NotFoundError.
    """
    row = lock(tx, ref)
    if row.held and leases.is_holder(row, actor) and not row.yields:
        return leases.granted(tx, settle(tx, row, **kept(tx, row) | leases.lasting(tx, lease_ms))), True
    _check_lockable(tx, ref, row, actor)
    changed = settle(tx, row, **_grant(tx, row, actor, lease_ms))
    tx.emit("task.locked", changed, actor, note=note)
    return leases.granted(tx, changed), False


def take_and_start(
    tx: Tx,
    ref: Ref,
    actor: Actor,
    *,
    lease_ms: int | None,
    token: int | None = None,
    claim_note: str | None = None,
    start_note: str | None = None,
) -> tuple[Granted, bool]:
    """Lock a task in todo and move it to in_progress, both or neither; repeated by the holder it changes nothing.

    A caller with the live ``token`` begins it in the holder's place. Return and refusals as ``take``.
    """
    row = lock(tx, ref)
    ours = check_lock(ref, row, actor, token)
    if ours and row.status == Status.IN_PROGRESS:
        return leases.granted(tx, settle(tx, row, **kept(tx, row) | leases.lasting(tx, lease_ms))), True
    if row.held and not ours and not row.yields:
        raise leases.held_by_another(tx, ref, row)
    if row.status == Status.IN_PROGRESS:
        word = ref.words[Status.IN_PROGRESS]
        raise IllegalMoveError(
            current=word,
            target=word,
            allowed=_moves_of(ref, row),
            next_step="It was begun and nobody holds it: core_claim_task takes its lock, to go on with it.",
        )
    check_move(Status(row.status), Status.IN_PROGRESS, ref.words)
    leases.check_ready(tx, ref, row, actor)
    grant = kept(tx, row) | leases.lasting(tx, lease_ms) if ours else _grant(tx, row, actor, lease_ms)
    changed = settle(tx, row, status=Status.IN_PROGRESS.value, **grant, **starting(tx, row, actor))
    if ours:
        tx.emit("task.updated", changed, actor, moved=(Status.TODO, Status.IN_PROGRESS), note=start_note)
    else:
        tx.emit("task.claimed", changed, actor, moved=(Status.TODO, Status.IN_PROGRESS), note=claim_note)
        tx.emit("task.started", changed, actor, note=start_note)
    return leases.granted(tx, changed), False


def check_lock(ref: Ref, row: Any, actor: Actor, token: int | None) -> bool:
    """Say whether the caller holds the task's lock, by the token or as the holder.

    A token that is not the live lock's raises StaleLeaseError.
    """
    if token is not None:
        if token != row.fencing_token or not row.held:
            raise leases.stale(ref, row, token)
        return True
    return bool(row.held and leases.is_holder(row, actor))


def touch(tx: Tx, ref: Ref, row: Any, actor: Actor, token: int | None) -> Any:
    """Extend the lock if the caller holds it, as every sign of life does. Return the row. Raises StaleLeaseError."""
    if not check_lock(ref, row, actor, token) or row.lease_expires_at is None:
        return row
    changed = settle(tx, row, **leases.lasting(tx, row.lease_ms))
    leases.granted(tx, changed)
    return changed


def drop(tx: Tx, ref: Ref, actor: Actor, *, note: str | None = None, token: int | None = None) -> tuple[Any, bool]:
    """Let the lock go and leave the status; return the row and whether there was a lock.

    Raises LeaseHeldError when it is another agent's, StaleLeaseError, NotFoundError.
    """
    row = lock(tx, ref)
    ours = check_lock(ref, row, actor, token)
    if not row.held:
        return row, False
    if not ours and actor.type == "agent" and leases.is_live(tx, row):
        raise leases.held_by_another(tx, ref, row)
    changed = settle(tx, row, **leases.UNASSIGNED)
    tx.emit("task.unlocked", changed, actor, note=note)
    return changed, True


def give_up(tx: Tx, ref: Ref, actor: Actor, token: int, reason: str) -> None:
    """Put back a task that was begun for a caller who is gone; nothing if the lock is another one by now."""
    row = lock(tx, ref)
    if row.held and row.fencing_token == token and row.status == Status.IN_PROGRESS:
        leases.give_back(tx, row, actor, reason=reason)


def recover(tx: Tx, ref: Ref, actor: Actor, *, target: Status, note: str) -> Any:
    """Put a stuck task into ``target`` (one of RECOVERABLE) from any state, and fence whoever held it.

    It begins afresh: attempts, pauses and the failure's reason are cleared, and in todo its result.
    """
    row = lock(tx, ref)
    rest_ms = leases.handover_ms(tx, row) if target is Status.TODO else 0
    changes: dict[str, Any] = {
        "fencing_token": row.fencing_token + 1,
        "runner": None,
        "attempts": 0,
        "lease_losses": 0,
        "not_before": tx.now_ms + rest_ms if rest_ms else None,
        "result_hash": None,
        "reason": note if target is Status.FAILED else None,
        "completed_at": tx.now_ms if target in FINISHED else None,
    }
    if target is Status.TODO:
        changes["outputs"] = None
    changed = settle(tx, row, status=target.value, **leases.UNASSIGNED, **changes)
    tx.emit("task.recovered", changed, actor, moved=(row.status, target.value), note=note)
    return changed
