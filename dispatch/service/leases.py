"""Claim, start, renew, release: who holds a task, until when, under which token.

Every function is one transaction on a ``Tx``. Each grant is one conditional
UPDATE whose row decides; only when there is none is the row read, to say why.
Lease lengths are milliseconds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, and_, bindparam, cast, false, func, or_, true, update

from dispatch.core.lifecycle import Status, Verb, path
from dispatch.errors import AssignedElsewhereError, LeaseHeldError, NotReadyError, StaleLeaseError, TaskError
from dispatch.service import readiness, wire
from dispatch.service.access import agent_uuid
from dispatch.service.messages import append_text
from dispatch.service.rows import ALL, Ref, lock, settle
from dispatch.service.rows import locate as find
from dispatch.service.schema import tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

HANDOVER_MS: Final = 15_000
"""How long a worker may take to notice that somebody took its task away, and to stop what it runs."""

UNHELD: Final = {"held": False, "yields": False, "claim_id": None, "lease_expires_at": None}
"""What ends a lock; who held it last stays known."""
UNASSIGNED: Final = {**UNHELD, "holder_type": None, "holder_id": None, "holder_name": None, "held_since": None}

_CLAIM: Final = (
    update(tasks)
    .where(
        tasks.c.id == bindparam("p_id"),
        tasks.c.status == Status.TODO.value,
        tasks.c.held == false(),
        or_(tasks.c.not_before.is_(None), tasks.c.not_before <= bindparam("p_now")),
        or_(tasks.c.assigned_to.is_(None), tasks.c.assigned_to == bindparam("p_agent")),
        ~readiness.waits,
    )
    .values(
        status=Status.IN_PROGRESS.value,
        held=true(),
        holder_type=bindparam("p_type"),
        holder_id=bindparam("p_actor"),
        holder_name=bindparam("p_name"),
        held_since=bindparam("p_now"),
        yields=false(),
        fencing_token=tasks.c.fencing_token + 1,
        claim_id=bindparam("p_claim"),
        runner=None,
        lease_ms=bindparam("p_lease"),
        lease_expires_at=bindparam("p_expires"),
        not_before=None,
        result_hash=None,
        entered_at=bindparam("p_now"),
        updated_at=bindparam("p_now"),
    )
    .returning(*ALL)
)

_ours: Final = and_(
    tasks.c.id == bindparam("p_id"),
    tasks.c.fencing_token == bindparam("p_token"),
    tasks.c.status == Status.IN_PROGRESS.value,
    tasks.c.held == true(),
)
_length: Final = func.coalesce(cast(bindparam("p_lease"), BigInteger), tasks.c.lease_ms)
_lease: Final = {
    "lease_ms": _length,
    "lease_expires_at": bindparam("p_now") + _length,
    "updated_at": bindparam("p_now"),
}

_START: Final = (
    update(tasks)
    .where(_ours, tasks.c.runner.is_(None))
    .values(runner=bindparam("p_runner"), attempts=tasks.c.attempts + 1, started_at=bindparam("p_now"), **_lease)
    .returning(*ALL)
)
_RENEW: Final = update(tasks).where(_ours).values(**_lease).returning(*ALL)


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease that was granted or extended: the task's row, and how long it lasts from now (None: for ever)."""

    task: Any
    ttl_ms: int | None


def lasting(tx: Tx, lease_ms: int | None) -> dict[str, Any]:
    """Return the columns of a lease of this length from now; None never runs out."""
    return {"lease_ms": lease_ms, "lease_expires_at": None if lease_ms is None else tx.now_ms + lease_ms}


def granted(tx: Tx, row: Any) -> Granted:
    """Return the grant that a row shows, and see to it that somebody takes it back when it runs out."""
    if row.lease_expires_at is None:
        return Granted(row, None)
    tx.leased_until(row.lease_expires_at)
    return Granted(row, max(0, row.lease_expires_at - tx.now_ms))


def is_holder(row: Any, actor: Actor) -> bool:
    """Say whether ``actor`` is the one who holds the task, or held it when it finished."""
    if row.holder_id is None:
        return False
    return agent_uuid(row.holder_type, row.holder_id) == agent_uuid(actor.type, actor.id)


def is_live(tx: Tx, row: Any) -> bool:
    """Say whether a lock keeps others from changing the task: held, not run out, and not handed to review."""
    return row.held and not row.yields and (row.lease_expires_at is None or row.lease_expires_at > tx.now_ms)


def held_by_another(tx: Tx, ref: Ref, row: Any) -> LeaseHeldError:
    """Return the refusal for a task that somebody else holds."""
    until = f"until {wire.iso(row.lease_expires_at)}" if row.lease_expires_at is not None else "until it is released"
    left_ms = None if row.lease_expires_at is None else max(1_000, row.lease_expires_at - tx.now_ms)
    return LeaseHeldError(
        f"Task {row.id} is in {ref.words[row.status]} status and already claimed by {row.holder_name} {until}.",
        holder=row.holder_id,
        locked_by=agent_uuid(row.holder_type, row.holder_id),
        locked_since=wire.iso(row.held_since),
        lease_expires=wire.iso(row.lease_expires_at),
        retry_after_ms=left_ms,
        status=ref.words[row.status],
    )


def stale(ref: Ref, row: Any, token: int) -> StaleLeaseError:
    """Return the refusal for a token that is not, or no longer, the key to the task."""
    word = ref.words[row.status]
    if token == row.fencing_token:
        why = f"has ended: the task is in {word} status"
        if row.status == Status.IN_PROGRESS and row.held:
            why = f"was started by another runner: the task is in {word} status"
    else:
        why = f"is not the current one of task {row.id}, which is in {word} status"
    return StaleLeaseError(f"The lease with fencing token {token} {why}; stop working on it.", status=word)


def check_right(tx: Tx, ref: Ref, row: Any, actor: Actor, token: int | None) -> None:
    """Raise unless the caller may report on the task: by the current token, or as a plain client's actor.

    Without a token: the holder, people and systems, and anybody while no lock is live.
    """
    if token is not None:
        if token != row.fencing_token or row.status != Status.IN_PROGRESS or not row.held:
            raise stale(ref, row, token)
        return
    if is_live(tx, row) and actor.type == "agent" and not is_holder(row, actor):
        raise held_by_another(tx, ref, row)


def claim(tx: Tx, ref: Ref, actor: Actor, *, lease_ms: int | None, claim_id: str | None = None) -> Granted:
    """Grant the task to ``actor``, or extend the grant it has. ``lease_ms`` None never runs out.

    Raises IllegalMoveError, LeaseHeldError, NotReadyError, AssignedElsewhereError, NotFoundError.
    """
    task_id = find(tx, ref)
    row = tx.one(
        _CLAIM,
        {
            "p_id": task_id,
            "p_now": tx.now_ms,
            "p_type": actor.type,
            "p_actor": actor.id,
            "p_name": actor.name,
            "p_agent": agent_uuid(actor.type, actor.id),
            "p_claim": claim_id,
            "p_lease": lease_ms,
            "p_expires": None if lease_ms is None else tx.now_ms + lease_ms,
        },
    )
    if row is None:
        return _claim_again(tx, ref, actor, lease_ms, claim_id)
    tx.emit("task.claimed", row, actor, moved=(Status.TODO, Status.IN_PROGRESS))
    return granted(tx, row)


def claim_many(tx: Tx, refs: Sequence[Ref], actor: Actor, *, lease_ms: int, claim_id: str) -> list[Granted | TaskError]:
    """Try to claim each task; one that is refused changes nothing and does not hinder the others."""
    found: list[Granted | TaskError] = []
    for ref in refs:
        try:
            found.append(claim(tx, ref, actor, lease_ms=lease_ms, claim_id=claim_id))
        except TaskError as refusal:
            found.append(refusal)
    return found


def _claim_again(tx: Tx, ref: Ref, actor: Actor, lease_ms: int | None, claim_id: str | None) -> Granted:
    """Answer a claim that granted nothing new: the same grant, a longer one, or the reason why not."""
    row = lock(tx, ref)
    if row.held:
        if row.status == Status.TODO and is_holder(row, actor):
            return _begin_locked(tx, ref, row, actor, lease_ms, claim_id)
        if row.status != Status.IN_PROGRESS or not is_holder(row, actor):
            raise held_by_another(tx, ref, row)
        if claim_id is not None:
            if row.claim_id != claim_id:
                raise held_by_another(tx, ref, row)
            return granted(tx, row)
        return renew(tx, ref, actor, token=row.fencing_token, lease_ms=lease_ms)
    path(Verb.CLAIM, Status(row.status), words=ref.words)
    check_ready(tx, ref, row, actor)
    raise AssertionError(f"task {row.id} could be claimed and was not")


def _begin_locked(tx: Tx, ref: Ref, row: Any, actor: Actor, lease_ms: int | None, claim_id: str | None) -> Granted:
    """Move a task that ``actor`` has locked before to in_progress; the grant is the one that it has."""
    check_ready(tx, ref, row, actor)
    changed = settle(
        tx,
        row,
        status=Status.IN_PROGRESS.value,
        claim_id=claim_id,
        runner=None,
        **lasting(tx, lease_ms),
        not_before=None,
        result_hash=None,
    )
    tx.emit("task.claimed", changed, actor, moved=(Status.TODO, Status.IN_PROGRESS))
    return granted(tx, changed)


def handover_ms(tx: Tx, row: Any) -> int:
    """Return how long a task that is taken from its holder must rest, so that no second attempt runs beside the first.

    No longer than the lease that it is taken from would have lasted.
    """
    if row.status != Status.IN_PROGRESS or row.runner is None or not is_live(tx, row):
        return 0
    left_ms = HANDOVER_MS if row.lease_expires_at is None else row.lease_expires_at - tx.now_ms
    return min(HANDOVER_MS, left_ms)


def check_ready(tx: Tx, ref: Ref, row: Any, actor: Actor) -> None:
    """Raise unless a task that nobody holds may be begun by ``actor`` now.

    Raises AssignedElsewhereError, NotReadyError.
    """
    word = ref.words[row.status]
    if row.assigned_to is not None and row.assigned_to != agent_uuid(actor.type, actor.id):
        raise AssignedElsewhereError(
            f"Task {row.id} is kept for agent {row.assigned_to}.", assigned_to=row.assigned_to, status=word
        )
    waits_for = readiness.waits_for(tx, ref, row) if row.depends_on is not None else []
    if waits_for:
        names = ", ".join(f"{readiness.called(item)} ({item['status']})" for item in waits_for)
        raise NotReadyError(f"Task {row.id} waits for {names}.", waits_for=waits_for, status=word)
    if row.not_before is not None and row.not_before > tx.now_ms:
        raise NotReadyError(
            f"Task {row.id} may not be claimed before {wire.iso(row.not_before)}.",
            not_before=wire.iso(row.not_before),
            retry_after_ms=max(1, row.not_before - tx.now_ms),
            status=word,
        )


def start(
    tx: Tx, ref: Ref, actor: Actor, *, token: int, runner: str, lease_ms: int | None = None, message: str | None = None
) -> Granted:
    """Begin the attempt under ``token``. Raises StaleLeaseError, NotFoundError."""
    task_id = find(tx, ref)
    values = {"p_id": task_id, "p_token": token, "p_now": tx.now_ms, "p_lease": lease_ms}
    row = tx.one(_START, {**values, "p_runner": runner})
    if row is not None:
        tx.emit("task.started", row, actor, note=runner)
        if message:
            append_text(tx, row, actor, message)
        return granted(tx, row)
    row = lock(tx, ref)
    if row.fencing_token != token or row.status != Status.IN_PROGRESS or row.runner != runner:
        raise stale(ref, row, token)
    return granted(tx, tx.one(_RENEW, values))


def renew(
    tx: Tx, ref: Ref, actor: Actor, *, token: int, lease_ms: int | None = None, message: str | None = None
) -> Granted:
    """Extend the lease from now. Raises StaleLeaseError, NotFoundError."""
    task_id = find(tx, ref)
    row = tx.one(_RENEW, {"p_id": task_id, "p_token": token, "p_now": tx.now_ms, "p_lease": lease_ms})
    if row is None:
        raise stale(ref, lock(tx, ref), token)
    if message:
        append_text(tx, row, actor, message)
    return granted(tx, row)


def release(
    tx: Tx, ref: Ref, actor: Actor, *, token: int, counted: bool = False, delay_ms: int = 0, reason: str | None = None
) -> Any:
    """Give the task back. ``counted`` keeps the attempt; ``delay_ms`` is how long nobody may claim it.

    A repeated identical release is answered as the first. Raises StaleLeaseError, NotFoundError.
    """
    row = lock(tx, ref)
    digest = digest_of("release", counted, delay_ms, reason)
    if row.status == Status.TODO and row.fencing_token == token and row.result_hash == digest:
        return row
    check_right(tx, ref, row, actor, token)
    return give_back(tx, row, actor, counted=counted, delay_ms=delay_ms, reason=reason, digest=digest)


def give_back(
    tx: Tx,
    row: Any,
    actor: Actor,
    *,
    counted: bool = False,
    delay_ms: int = 0,
    reason: str | None = None,
    digest: str | None = None,
    keep: dict[str, Any] | None = None,
) -> Any:
    """Move a locked row from in_progress back to todo and return it. ``keep``: the lock that stays with it."""
    taken_back = 1 if row.runner is not None and not counted else 0
    changed = settle(
        tx,
        row,
        status=Status.TODO.value,
        runner=None,
        attempts=row.attempts - taken_back,
        not_before=tx.now_ms + delay_ms if delay_ms else None,
        result_hash=digest,
        reason=reason if reason is not None else row.reason,
        **(UNASSIGNED if keep is None else keep),
    )
    note = f"{'counted' if counted else 'not counted'}: {reason or 'no reason given'}"
    tx.emit("task.released", changed, actor, moved=(Status.IN_PROGRESS, Status.TODO), note=note)
    return changed


def digest_of(*facts: Any) -> str:
    """Return a fingerprint of a report, by which a repeated one is recognised."""
    return hashlib.sha256(wire.dumps(facts).encode()).hexdigest()
