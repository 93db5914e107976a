"""Deliveries: one row for each end of a task that somebody wants to be told of by a callback.

The row is written in the transaction that ends the task, so that it exists if
and only if the task ended. It holds no URL and no content: whoever delivers
(the ingress) reads the task. Taking one is a lease: who does not report in time
has died, and another may take it. Every function is one transaction on a ``Tx``.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, insert, select, update

from dispatch.core.lifecycle import ATS_WORD, FINISHED
from dispatch.core.sealed import is_sealed
from dispatch.errors import NotFoundError, StaleLeaseError
from dispatch.service import tenants
from dispatch.service.rows import ALL, Ref, Scope, fetch
from dispatch.service.schema import deliveries, tasks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

WAITING: Final = "waiting"
DELIVERED: Final = "delivered"
FAILED: Final = "failed"
EMPTY: Final = "empty"
STATES: Final = (WAITING, DELIVERED, FAILED, EMPTY)

_ENDS: Final = {state.value: ATS_WORD[state] for state in FINISHED}
_COLUMNS: Final = tuple(deliveries.c)
_OPEN: Final = insert(deliveries)
_PAGE: Final = 500
_TAKE: Final = (
    update(deliveries)
    .where(deliveries.c.id.in_(bindparam("p_ids", expanding=True)))
    .values(
        tries=deliveries.c.tries + 1,
        token=deliveries.c.token + 1,
        due_at=bindparam("p_until"),
        taken_until=bindparam("p_until"),
    )
    .returning(*_COLUMNS)
)
_REPORT: Final = (
    update(deliveries)
    .where(
        deliveries.c.id == bindparam("p_id"),
        deliveries.c.token == bindparam("p_token"),
        deliveries.c.state == WAITING,
        deliveries.c.taken_until.is_not(None),
    )
    .values(
        state=bindparam("p_state"),
        tries=deliveries.c.tries - bindparam("p_uncounted"),
        due_at=bindparam("p_due"),
        taken_until=None,
        ended_at=bindparam("p_ended"),
        last_error=bindparam("p_error"),
    )
    .returning(*_COLUMNS)
)
_RESEND: Final = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("p_id"))
    .values(
        state=WAITING,
        tries=0,
        token=deliveries.c.token + 1,
        due_at=bindparam("p_now"),
        taken_until=None,
        ended_at=None,
        last_error=None,
    )
    .returning(*_COLUMNS)
)


@dataclass(frozen=True, slots=True)
class Range:
    """Whose deliveries a caller means: those of a project or of the projects that it may see, of some channels."""

    scope: Scope | None = None
    within: frozenset[int] | None = None
    channels: tuple[str, ...] = ()

    def conditions(self, tx: Tx) -> Iterator[Any]:
        """Yield what must hold of the tasks. Raises NotFoundError for an unknown project."""
        if self.scope is not None:
            yield tasks.c.project_id == tenants.project_id(tx, self.scope, self.within)
        if self.within is not None:
            yield tasks.c.project_id.in_(self.within)
        if self.channels:
            yield tasks.c.channel.in_(self.channels)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one try.

    ``state`` is delivered, failed or empty for an end, and waiting to be tried again after ``delay_ms``;
    ``counted`` False: it was not tried at all.
    """

    state: str
    delay_ms: int = 0
    error: str | None = None
    counted: bool = True


def open_for(tx: Tx) -> None:
    """Write a delivery for every end of a task in this transaction that somebody wants to be told of.

    It goes by what the transaction tells of, so that every move counts, whichever way it was made.
    """
    found = [
        {
            "id": f"dlv_{uuid.uuid4().hex}",
            "task_id": event.task.id,
            "status": _ENDS[line["to_status"]],
            "settled_at": line["created_at"],
            "state": WAITING,
            "tries": 0,
            "token": 0,
            "due_at": line["created_at"],
        }
        for event, line in zip(tx.events, tx.lines, strict=True)
        if line["to_status"] in _ENDS and line["from_status"] != line["to_status"] and wants(event.task.payload)
    ]
    for start in range(0, len(found), _PAGE):
        tx.run(_OPEN.values(found[start : start + _PAGE]))


def wants(payload: str | None) -> bool:
    """Say whether a task with this payload (JSON text) may name somebody to tell of its end.

    An encrypted one may do so in its sealed part, which only the fleet can read.
    """
    if payload is None or ('"callback_url"' not in payload and '"encrypted"' not in payload):
        return False
    found = json.loads(payload)
    if not isinstance(found, dict):
        return False
    url = found.get("callback_url")
    return is_sealed(found) or (isinstance(url, str) and bool(url.strip()))


def take(tx: Tx, where: Range, *, lease_ms: int, limit: int) -> tuple[Sequence[Any], int | None]:
    """Take deliveries that are due, the longest due first; return them and in how many ms the next one is, if any.

    A row has the delivery's columns.
    """
    conditions = [deliveries.c.state == WAITING, *where.conditions(tx)]
    joined = select(deliveries.c.id).join(tasks, tasks.c.id == deliveries.c.task_id)
    due = tx.all(
        joined.where(*conditions, deliveries.c.due_at <= tx.now_ms)
        .order_by(deliveries.c.due_at, deliveries.c.id)
        .limit(limit)
        .with_for_update(of=deliveries, skip_locked=True)
    )
    ids = [row.id for row in due]
    taken = tx.all(_TAKE, {"p_ids": ids, "p_until": tx.now_ms + lease_ms}) if ids else []
    order = {ident: at for at, ident in enumerate(ids)}
    return sorted(taken, key=lambda row: order[row.id]), next_due(tx, where)


def next_due(tx: Tx, where: Range) -> int | None:
    """Return in how many ms a delivery is due, 0 for now, None when none waits. Raises NotFoundError."""
    first = tx.one(
        select(deliveries.c.due_at)
        .join(tasks, tasks.c.id == deliveries.c.task_id)
        .where(deliveries.c.state == WAITING, *where.conditions(tx))
        .order_by(deliveries.c.due_at)
        .limit(1)
    )
    return None if first is None else max(0, first[0] - tx.now_ms)


def _locate(tx: Tx, ident: str, where: Range) -> tuple[Any, Any]:
    """Return the rows of a delivery and of its task. Raises NotFoundError."""
    row = tx.one(select(*_COLUMNS).where(deliveries.c.id == ident).with_for_update())
    if row is not None:
        task = tx.one(select(*ALL).where(tasks.c.id == row.task_id, *where.conditions(tx)))
        if task is not None:
            return row, task
    raise NotFoundError(f"There is no delivery {ident[:80]!r}.", next_step="List them with 'dispatch callbacks'.")


def report(tx: Tx, ident: str, where: Range, *, token: int, outcome: Outcome) -> Any:
    """Write down what became of a delivery that was taken under ``token``; return its row.

    A report that was made already is answered as the first was. Raises StaleLeaseError, NotFoundError.
    """
    before, _ = _locate(tx, ident, where)
    is_over = outcome.state != WAITING
    row = tx.one(
        _REPORT,
        {
            "p_id": ident,
            "p_token": token,
            "p_state": outcome.state,
            "p_uncounted": 0 if outcome.counted else 1,
            "p_due": tx.now_ms + outcome.delay_ms,
            "p_ended": tx.now_ms if is_over else None,
            "p_error": outcome.error,
        },
    )
    if row is not None:
        return row
    if before.token == token:
        return before
    raise StaleLeaseError(
        f"Delivery {ident} was taken again, or resent by hand, since it was taken under token {token}.",
        next_step="Forget it; whoever took it after you reports.",
    )


def resend(tx: Tx, ident: str, where: Range, actor: Actor) -> Any:
    """Make a delivery due now, with all its tries before it, whatever became of it; return its row.

    Raises NotFoundError.
    """
    _, task = _locate(tx, ident, where)
    row = tx.one(_RESEND, {"p_id": ident, "p_now": tx.now_ms})
    tx.emit("task.updated", task, actor, note=f"callback {ident} is sent again")
    return row


def find(
    tx: Tx, where: Range, *, task: int | str | None = None, state: str | None = None, limit: int = 100
) -> Sequence[Any]:
    """Return deliveries, the newest first. Raises NotFoundError for an unknown task or project."""
    conditions = list(where.conditions(tx))
    if task is not None:
        conditions.append(deliveries.c.task_id == fetch(tx, Ref(task, where.scope, where.within)).id)
    if state is not None:
        conditions.append(deliveries.c.state == state)
    return tx.all(
        select(*_COLUMNS)
        .join(tasks, tasks.c.id == deliveries.c.task_id)
        .where(*conditions)
        .order_by(deliveries.c.settled_at.desc(), deliveries.c.task_id.desc(), deliveries.c.id)
        .limit(limit)
    )
