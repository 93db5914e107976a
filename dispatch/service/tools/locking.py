"""The tools that lock and move: claim, claim and start, transition, release, recover."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.core.lifecycle import Status
from dispatch.errors import (
    AssignedElsewhereError,
    IllegalMoveError,
    InvalidInputError,
    LeaseHeldError,
    NotReadyError,
    TaskError,
    TooLargeError,
)
from dispatch.service import locks, moves, strict, wire
from dispatch.service.tools import params as p
from dispatch.service.tools import shapes
from dispatch.service.tools.model import Param, Tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.service.leases import Granted
    from dispatch.service.store import Tx
    from dispatch.service.tools.model import Call

OUTPUTS_BYTES_MAX: Final = 262_144
_NOT_NOW: Final = (LeaseHeldError, NotReadyError, AssignedElsewhereError, IllegalMoveError)
"""Refusals of a claim that are an answer, not a mistake."""


def not_claimed(refusal: TaskError) -> dict[str, Any]:
    """Return what a claim answers that was refused: who, until when, why, and when to try again."""
    body = refusal.as_body()
    return {"claimed": False, "reason": body.pop("code"), "error": body.pop("error"), **body}


def claimed(tx: Tx, granted: Granted, *, already_held: bool) -> dict[str, Any]:
    """Return what a claim answers that succeeded, with the whole task."""
    task = shapes.show_one(tx, granted.task)
    return {
        "claimed": True,
        "task_id": task["task_id"],
        "already_held": already_held,
        "lease_token": task["lease_token"],
        "lock_expires_at": task["lock_expires_at"],
        "task": task,
    }


async def _claim(call: Call, take: Callable[[Tx], tuple[Granted, bool]]) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        granted, already_held = take(tx)
        return claimed(tx, granted, already_held=already_held)

    try:
        return await call.store.write(work)
    except _NOT_NOW as refusal:
        return {**not_claimed(refusal), "task_id": call.arguments["task_id"]}


async def claim_task(call: Call) -> dict[str, Any]:
    """Lock a task without moving it."""
    ref, actor, lease_ms = call.ref(), call.actor(), call.lease_ms()
    note = call.arguments.get("note")
    return await _claim(call, lambda tx: locks.take(tx, ref, actor, lease_ms=lease_ms, note=note))


async def claim_and_start_task(call: Call) -> dict[str, Any]:
    """Lock a task and begin it."""
    ref, actor, lease_ms = call.ref(), call.actor(), call.lease_ms()
    notes = {name: call.arguments.get(name) for name in ("claim_note", "start_note")}
    return await _claim(call, lambda tx: locks.take_and_start(tx, ref, actor, lease_ms=lease_ms, **notes))


async def transition_task(call: Call) -> dict[str, Any]:
    """Make one legal move."""
    found, ref, actor = call.arguments, call.ref(), call.actor()
    wish = moves.Wish(
        target=found["to_status"],
        expected=found.get("expected_from_status"),
        note=found.get("note"),
        release_lock=found.get("release_lock", False),
        token=found.get("lease_token"),
        outputs=found.get("outputs"),
        lease_ms=call.lock_ms,
    )
    if wish.outputs is not None and wish.target not in (Status.IN_REVIEW, Status.COMPLETED):
        raise InvalidInputError("outputs are the result of a task; give them when it goes to in_review or completed.")
    return await call.store.write(lambda tx: shapes.show_one(tx, moves.transition(tx, ref, actor, wish)))


async def release_task_lock(call: Call) -> dict[str, Any]:
    """Let a lock go."""
    found, ref, actor = call.arguments, call.ref(), call.actor()

    def work(tx: Tx) -> dict[str, Any]:
        row, was_locked = locks.drop(tx, ref, actor, note=found.get("note"), token=found.get("lease_token"))
        return {"released": was_locked, **shapes.show_one(tx, row)}

    return await call.store.write(work)


async def recover_task(call: Call) -> dict[str, Any]:
    """Force a stuck task into a state from which work can go on."""
    found, ref, actor = call.arguments, call.ref(), call.actor()
    target, note = found["to_status"], found["note"]
    return await call.store.write(
        lambda tx: shapes.show_one(tx, locks.recover(tx, ref, actor, target=target, note=note))
    )


def _outputs(name: str, value: Any) -> list[Any]:
    found = strict.array(name, value)
    size = len(wire.dumps(found).encode())
    if size > OUTPUTS_BYTES_MAX:
        raise TooLargeError(f"{name} has {size} bytes of JSON; at most {OUTPUTS_BYTES_MAX} are allowed.")
    return found


TOKEN: Final = p.whole(0, 2**63 - 1)
LEASE_S: Final = p.or_null(p.whole(1, p.LOCK_S_MAX))
CLAIM_OUTPUT: Final = {
    "type": "object",
    "properties": {
        "claimed": {"type": "boolean"},
        "task_id": {"type": "string"},
        "already_held": {"type": "boolean"},
        "lease_token": {"type": "integer"},
        "lock_expires_at": {"type": ["string", "null"]},
        "reason": {"type": "string"},
        "next": {"type": "string"},
        "task": {"type": "object"},
    },
    "required": ["claimed"],
}
_WHO: Final = {"task_id": p.UUID, "agent_id": p.UUID}
_MOVED: Final = shapes.task_output("task_id", "status", "locked_by", "lease_token")

TOOLS: Final = (
    Tool(
        name="core_claim_task",
        title="Lock a task",
        description="Take the advisory lock of an unfinished task; its status stays. Only one agent wins; the others"
        " get claimed=false with who holds it, until when and when to try again. Waiting dependencies, a pause or"
        " another assignee refuse too. Repeated by the holder it extends the lock. It lasts lease_s (default 1 h, null:"
        " no end) from the holder's last call about the task.",
        run=claim_task,
        params={**_WHO, "note": p.NOTE, "lease_s": LEASE_S},
        required=("task_id", "agent_id"),
        output=CLAIM_OUTPUT,
        idempotent=True,
    ),
    Tool(
        name="core_claim_and_start_task",
        title="Lock a task and start it",
        description="Lock a task in todo and move it to in_progress in one step; the preferred way to begin. Answers"
        " as core_claim_task. Hand the lease_token to later calls: they fail if the lock was lost.",
        run=claim_and_start_task,
        params={**_WHO, "claim_note": p.NOTE, "start_note": p.NOTE, "lease_s": LEASE_S},
        required=("task_id", "agent_id"),
        output=CLAIM_OUTPUT,
        idempotent=True,
    ),
    Tool(
        name="core_transition_task",
        title="Move a task",
        description="Make one legal move: backlog->todo,cancelled,skipped; todo->in_progress,blocked,cancelled,skipped;"
        " in_progress->in_review,todo,failed,blocked,cancelled; in_review->completed,todo,in_review,failed,cancelled;"
        " completed->todo; failed,blocked->todo,backlog,cancelled; cancelled,skipped->backlog,todo. Another agent's"
        " lock refuses all but cancelled; in_review lets reviewers take over. You keep your lock unless release_lock or"
        " the task is finished. outputs: the result, with in_review or completed.",
        run=transition_task,
        params={
            **_WHO,
            "to_status": p.STATUS,
            "expected_from_status": p.STATUS,
            "note": p.NOTE,
            "release_lock": p.flag(default=False),
            "lease_token": TOKEN,
            "outputs": Param(_outputs, {"type": "array"}),
        },
        required=("task_id", "agent_id", "to_status"),
        output=_MOVED,
        destructive=True,
    ),
    Tool(
        name="core_release_task_lock",
        title="Release a lock",
        description="Let the lock go and leave the status. Not locked: released=false. Others' locks are refused.",
        run=release_task_lock,
        params={**_WHO, "note": p.NOTE, "lease_token": TOKEN},
        required=("task_id", "agent_id"),
        output={
            "type": "object",
            "properties": {"released": {"type": "boolean"}, **_MOVED["properties"]},
            "required": ["released", *_MOVED["required"]],
        },
        idempotent=True,
    ),
    Tool(
        name="core_recover_task",
        title="Recover a stuck task",
        description="Put a stuck task (orphaned lock, dead worker) into todo, failed or in_review from any status,"
        " whoever holds it; the holder's lease_token becomes void. The note is required and recorded.",
        run=recover_task,
        params={
            **_WHO,
            "to_status": p.one_of({state.value: state for state in locks.RECOVERABLE}),
            "note": p.text(p.NOTE_CHARS_MAX, chars_min=1),
        },
        required=("task_id", "agent_id", "to_status", "note"),
        output=_MOVED,
        destructive=True,
    ),
)
