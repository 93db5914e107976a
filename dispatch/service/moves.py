"""Complete, fail, cancel, reject, reopen, and moves by name: how a task changes state.

Every function is one transaction on a ``Tx`` and returns the task's row. What
is legal is the lifecycle's to say; every step is written to the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.lifecycle import FINISHED, Status, Verb, check_move, path
from dispatch.core.review import REMARK, TAG
from dispatch.errors import IllegalMoveError, UnexpectedStatusError
from dispatch.service import dependents, leases, locks, messages, wire
from dispatch.service.doomed import Doomed
from dispatch.service.events import STEP
from dispatch.service.rows import Ref, lock, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

_EVENT_OF: Final = {
    Status.COMPLETED: "task.completed",
    Status.FAILED: "task.failed",
    Status.CANCELLED: "task.cancelled",
    Status.SKIPPED: "task.rejected",
}
_TAG_OF: Final = {Status.TODO: TAG, Status.IN_REVIEW: REMARK}
"""Moves out of review whose note the next attempt reads, as that of ``bounce``."""
_AFRESH: Final = {"attempts": 0, "lease_losses": 0, "not_before": None, "result_hash": None}


def _effects(row: Any, target: Status, now_ms: int, keep: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what entering ``target`` changes besides the status. ``keep``: the lock that its holder wants to keep."""
    if target in FINISHED:
        return {**leases.UNHELD, "completed_at": now_ms}
    if target is Status.IN_REVIEW:
        return dict(leases.UNHELD) if keep is None else {**keep, "yields": True}
    changes: dict[str, Any] = {**(leases.UNASSIGNED if keep is None else keep), "runner": None, "completed_at": None}
    if row.status in FINISHED:
        changes |= {**_AFRESH, "outputs": None, "reason": None}
    elif row.status == Status.IN_REVIEW:
        changes |= _AFRESH
    elif row.status == Status.IN_PROGRESS and row.runner is not None:
        changes["attempts"] = row.attempts - 1
    return changes


def _walk(
    tx: Tx,
    row: Any,
    steps: tuple[Status, ...],
    actor: Actor,
    *,
    note: str | None = None,
    keep: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """Move a locked row along ``steps`` in one update and write every step to the history."""
    target = steps[-1]
    settled = settle(tx, row, status=target.value, **{**_effects(row, target, tx.now_ms, keep), **changes})
    tell(tx, row, settled, steps, actor, note)
    if target is Status.COMPLETED:
        dependents.tell_ready(tx, row.id, actor)
    return settled


def tell(tx: Tx, row: Any, settled: Any, steps: tuple[Status, ...], actor: Actor, note: str | None) -> None:
    """Write to the history, and tell everybody, that ``row`` walked along ``steps`` and is ``settled`` now."""
    came: str = row.status
    for step in steps[:-1]:
        tx.emit(STEP, settled, actor, moved=(came, step.value))
        came = step.value
    target = steps[-1]
    kind = _EVENT_OF.get(target, "task.updated")
    if target is Status.TODO and row.status in FINISHED:
        kind = "task.reopened"
    tx.emit(kind, settled, actor, moved=(came, target.value), note=note)


def _is_repeat(row: Any, actor: Actor, token: int | None, digest: str, ended: frozenset[Status]) -> bool:
    """Say whether this very report ended the attempt already, so that its answer was lost."""
    if row.status not in ended or row.result_hash != digest:
        return False
    return bool(token == row.fencing_token) if token is not None else leases.is_holder(row, actor)


def complete(
    tx: Tx,
    ref: Ref,
    actor: Actor,
    *,
    outputs: list[Any] | None = None,
    token: int | None = None,
    review: bool = False,
) -> Any:
    """End the task well, or hand it to review when it or ``review`` asks for that; from review, approve it.

    Raises StaleLeaseError, LeaseHeldError, IllegalMoveError, NotFoundError.
    """
    row = lock(tx, ref)
    digest = leases.digest_of("complete", outputs)
    if _is_repeat(row, actor, token, digest, frozenset({Status.COMPLETED, Status.IN_REVIEW})):
        return row
    leases.check_right(tx, ref, row, actor, token)
    steps = path(Verb.COMPLETE, Status(row.status), needs_review=row.needs_review or review, words=ref.words)
    changes: dict[str, Any] = {"reason": None}
    if outputs is not None:
        changes["outputs"] = wire.dumps(outputs)
    if row.status == Status.IN_PROGRESS:
        changes["result_hash"] = digest
    return _walk(tx, row, steps, actor, **changes)


def fail(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None, token: int | None = None) -> Any:
    """End the task badly. From todo only when it can never run because of what it depends on.

    Raises StaleLeaseError, LeaseHeldError, IllegalMoveError, NotFoundError.
    """
    row = lock(tx, ref)
    steps = steps_to_fail(tx, ref, row, actor, reason, lambda: Doomed(tx, [row.id]).has(row.id), token=token)
    if not steps:
        return row
    return _walk(tx, row, steps, actor, note=reason, reason=reason, result_hash=digest_of_failure(reason))


def steps_to_fail(
    tx: Tx,
    ref: Ref,
    row: Any,
    actor: Actor,
    reason: str | None,
    is_doomed: Callable[[], bool],
    *,
    token: int | None = None,
) -> tuple[Status, ...]:
    """Return the way to failed of a locked row; () when this very report failed it already.

    ``is_doomed`` is asked about a task that nobody has begun: whether it can never run. Raises as ``fail`` does.
    """
    if _is_repeat(row, actor, token, digest_of_failure(reason), frozenset({Status.FAILED})):
        return ()
    leases.check_right(tx, ref, row, actor, token)
    doomed = row.status == Status.TODO and row.depends_on is not None and is_doomed()
    return path(Verb.FAIL, Status(row.status), dependency_failed=doomed, words=ref.words)


@lru_cache(maxsize=1024)
def digest_of_failure(reason: str | None) -> str:
    """Return the fingerprint of a report that a task failed."""
    return leases.digest_of("fail", reason)


def _by_verb(tx: Tx, ref: Ref, actor: Actor, verb: Verb, reason: str | None) -> Any:
    row = lock(tx, ref)
    steps = path(verb, Status(row.status), words=ref.words)
    if verb is Verb.REJECT:
        leases.check_right(tx, ref, row, actor, None)
    return _walk(tx, row, steps, actor, note=reason, reason=reason)


def cancel(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None) -> Any:
    """Stop the task, whoever holds it. Raises IllegalMoveError, NotFoundError."""
    return _by_verb(tx, ref, actor, Verb.CANCEL, reason)


def reject(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None) -> Any:
    """Decline a task that nobody has begun. Raises IllegalMoveError, NotFoundError."""
    return _by_verb(tx, ref, actor, Verb.REJECT, reason)


def reopen(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None) -> Any:
    """Offer a finished task again, its counters and outputs cleared. Raises IllegalMoveError, NotFoundError."""
    return _by_verb(tx, ref, actor, Verb.REOPEN, reason)


def hurry(tx: Tx, ref: Ref, actor: Actor, *, reason: str | None = None) -> Any:
    """Offer a task at once that pauses between attempts; one that does not pause is left as it is.

    So is a pause that is no longer than a handover's: the first attempt of a task that was taken from its holder
    may still run, and within seconds the pause is over anyway. Raises IllegalMoveError, NotFoundError.
    """
    row = lock(tx, ref)
    if row.status != Status.TODO:
        raise IllegalMoveError(current=ref.words[row.status], target="hurry", allowed=[])
    ends = row.not_before
    if ends is None or ends <= tx.now_ms or ends - row.entered_at <= leases.HANDOVER_MS:
        return row
    changed = settle(tx, row, not_before=None)
    tx.emit("task.updated", changed, actor, note=reason or "offered at once")
    return changed


def move(tx: Tx, ref: Ref, row: Any, target: Status, actor: Actor, *, default_lease_ms: int) -> Any:
    """Move a locked row to ``target`` if the table allows it: a status that a client sets by name.

    To in_progress is a claim, from in_progress to todo a release. Raises
    IllegalMoveError, LeaseHeldError, NotReadyError.
    """
    current = Status(row.status)
    check_move(current, target, ref.words)
    if current is Status.TODO and target is Status.IN_PROGRESS:
        return leases.claim(tx, ref, actor, lease_ms=default_lease_ms).task
    if target is not Status.CANCELLED:
        leases.check_right(tx, ref, row, actor, None)
    if current is Status.IN_PROGRESS and target is Status.TODO:
        rest_ms = 0 if leases.is_holder(row, actor) else leases.handover_ms(tx, row)
        return leases.give_back(tx, row, actor, delay_ms=rest_ms)
    return _walk(tx, row, (target,), actor)


@dataclass(frozen=True, slots=True)
class Wish:
    """A move that an agent asks for by name. ``lease_ms`` is the length of a lock that the move has to take."""

    target: Status
    expected: Status | None = None
    note: str | None = None
    release_lock: bool = False
    token: int | None = None
    outputs: list[Any] | None = None
    lease_ms: int | None = None


def transition(tx: Tx, ref: Ref, actor: Actor, wish: Wish) -> Any:
    """Make exactly one legal move as an agent, who keeps its lock unless the task is finished or it lets it go.

    Cancelling is everybody's right. Raises UnexpectedStatusError,
    IllegalMoveError, StaleLeaseError, LeaseHeldError, NotReadyError,
    AssignedElsewhereError, NotFoundError.
    """
    row = lock(tx, ref)
    current, target = Status(row.status), wish.target
    if wish.expected is not None and wish.expected is not current:
        raise UnexpectedStatusError(
            f"Task {row.id} is in {ref.words[current]} status, not in {ref.words[wish.expected]}.",
            status=ref.words[current],
        )
    check_move(current, target, ref.words)
    ours = locks.check_lock(ref, row, actor, wish.token)
    if not ours and target is not Status.CANCELLED and actor.type == "agent" and leases.is_live(tx, row):
        raise leases.held_by_another(tx, ref, row)
    if target is Status.IN_PROGRESS:
        # A lock that is ours already keeps its own length.
        lease_ms = row.lease_ms if ours else wish.lease_ms
        granted, _ = locks.take_and_start(
            tx, ref, actor, lease_ms=lease_ms, token=wish.token, claim_note=wish.note, start_note=wish.note
        )
        return locks.drop(tx, ref, actor, token=wish.token)[0] if wish.release_lock else granted.task
    keep = locks.kept(tx, row) if ours and not wish.release_lock and target not in FINISHED else None
    if current is Status.IN_PROGRESS and target is Status.TODO:
        rest_ms = 0 if ours else leases.handover_ms(tx, row)
        row = leases.give_back(tx, row, actor, delay_ms=rest_ms, reason=wish.note, keep=keep)
    else:
        if current is Status.IN_REVIEW and target in _TAG_OF and wish.note:
            text = [{"type": "text", "content": wish.note}]
            messages.append(tx, row, actor, text, kind="note", tags=[_TAG_OF[target]])
        changes: dict[str, Any] = {"reason": wish.note} if target is Status.FAILED else {}
        if wish.outputs is not None:
            changes["outputs"] = wire.dumps(wish.outputs)
        row = _walk(tx, row, (target,), actor, note=wish.note, keep=keep, **changes)
    if keep is not None:
        leases.granted(tx, row)
    return row
