"""What the clock does to leases and locks: they run out, or are extended because nobody could renew.

Every function is one transaction on a ``Tx``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Integer, bindparam, case, cast, false, func, select, true, update

from dispatch.ats.model import Actor
from dispatch.core.lifecycle import Status
from dispatch.service.rows import ALL
from dispatch.service.schema import tasks

if TYPE_CHECKING:
    from dispatch.service.store import Tx

SERVICE_ACTOR: Final = Actor("system", "dispatch-service", "dispatch")
"""Who does what the clock does."""

_started: Final = cast(case((tasks.c.runner.is_(None), 0), else_=1), Integer)
_EXPIRE: Final = (
    update(tasks)
    .where(
        tasks.c.held == true(),
        tasks.c.lease_expires_at <= bindparam("p_limit"),
        tasks.c.status == Status.IN_PROGRESS.value,
    )
    .values(
        status=Status.TODO.value,
        held=false(),
        holder_type=None,
        holder_id=None,
        holder_name=None,
        claim_id=None,
        attempts=tasks.c.attempts - _started,
        lease_losses=tasks.c.lease_losses + _started,
        held_since=None,
        runner=None,
        lease_expires_at=None,
        entered_at=bindparam("p_now"),
        updated_at=bindparam("p_now"),
    )
    .returning(*ALL)
)
_EXPIRE_LOCKS: Final = (
    update(tasks)
    .where(tasks.c.held == true(), tasks.c.lease_expires_at <= bindparam("p_limit"))
    .values(
        held=false(),
        holder_type=None,
        holder_id=None,
        holder_name=None,
        held_since=None,
        yields=false(),
        lease_expires_at=None,
        updated_at=bindparam("p_now"),
    )
    .returning(*ALL)
)
"""For what is locked without being in progress; run after ``_EXPIRE``."""
_EXTEND_ALL: Final = (
    update(tasks)
    .where(tasks.c.held == true(), tasks.c.lease_expires_at.is_not(None))
    .values(lease_expires_at=bindparam("p_now") + tasks.c.lease_ms)
)
_NEXT_EXPIRY: Final = select(func.min(tasks.c.lease_expires_at)).where(tasks.c.held == true())


def expire(tx: Tx, regrant_delay_ms: int) -> int | None:
    """Take back every lease that ran out at least ``regrant_delay_ms`` ago; return when the next one does."""
    values = {"p_limit": tx.now_ms - regrant_delay_ms, "p_now": tx.now_ms}
    for row in sorted(tx.all(_EXPIRE, values), key=lambda row: row.id):
        tx.emit(
            "task.lease_expired", row, SERVICE_ACTOR, moved=(Status.IN_PROGRESS, Status.TODO), note="The lease ran out."
        )
    for row in sorted(tx.all(_EXPIRE_LOCKS, values), key=lambda row: row.id):
        tx.emit("task.unlocked", row, SERVICE_ACTOR, note="The lock ran out.")
    return next_expiry(tx)


def next_expiry(tx: Tx) -> int | None:
    """Return when the first live lease runs out, in ms since the epoch."""
    found = tx.one(_NEXT_EXPIRY)
    return None if found is None else found[0]


def extend_all(tx: Tx) -> int:
    """Give every live lease its full length from now, because nobody could renew while the service was away."""
    return tx.run(_EXTEND_ALL, {"p_now": tx.now_ms})
