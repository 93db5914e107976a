"""Removing what is kept no longer, a bounded number of rows at a time; whole tasks are in ``removal``.

Every step is one transaction on a ``Tx`` and removes what is older than
``before_ms``. What a step looks at is bounded as well as what it removes: it
goes along an index from where the last one stopped (``pruning``).
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, delete, select, text, tuple_

from dispatch.core import retention as kinds
from dispatch.service import deliveries, pruning, removal
from dispatch.service.pruning import ROWS_MAX, Step
from dispatch.service.schema import AGING, events, idempotency_keys, messages, tasks
from dispatch.service.schema import deliveries as delivery_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dispatch.service.store import Tx

TASKS_MAX: Final = 100
"""How many ended tasks a step looks at: most have nothing to remove, and have been looked at in few statements."""
EVENTS_MAX: Final = 2_000
"""How many events a step looks at: most of them may be history."""
LOG: Final = "log"

_OVER: Final = (deliveries.DELIVERED, deliveries.FAILED, deliveries.EMPTY)

NEXT_EVENTS: Final = (
    select(events.c.seq, events.c.message_id, events.c.created_at)
    .where(events.c.seq > bindparam("p_after"))
    .order_by(events.c.seq)
    .limit(EVENTS_MAX)
)
NEXT_ENDED: Final = (
    select(tasks.c.id, tasks.c.completed_at)
    .where(
        tasks.c.completed_at < bindparam("p_before"),
        tuple_(tasks.c.completed_at, tasks.c.id) > tuple_(bindparam("p_at"), bindparam("p_number")),
    )
    .order_by(tasks.c.completed_at, tasks.c.id)
    .limit(TASKS_MAX)
)
LOGS_OF: Final = (
    select(messages.c.id)
    .where(
        messages.c.task_id.in_(bindparam("p_ids", expanding=True)),
        messages.c.kind == LOG,
        messages.c.created_at < bindparam("p_before"),
    )
    .limit(ROWS_MAX)
)
EVENTS_OF_MESSAGES: Final = select(events.c.seq).where(events.c.message_id.in_(bindparam("p_ids", expanding=True)))
_DROP_MESSAGES: Final = delete(messages).where(messages.c.id.in_(bindparam("p_ids", expanding=True)))
HISTORY_OF: Final = (
    select(events.c.seq)
    .where(
        events.c.task_id.in_(bindparam("p_ids", expanding=True)),
        events.c.seq < bindparam("p_newest"),
        events.c.created_at < bindparam("p_before"),
    )
    .limit(ROWS_MAX)
)
OLD_DELIVERIES: Final = (
    select(delivery_rows.c.id)
    .where(delivery_rows.c.state.in_(_OVER), delivery_rows.c.due_at < bindparam("p_before"))
    .limit(ROWS_MAX)
)
_DROP_DELIVERIES: Final = delete(delivery_rows).where(delivery_rows.c.id.in_(bindparam("p_ids", expanding=True)))
_keys: Final = idempotency_keys.c
OLD_KEYS: Final = (
    select(_keys.created_at)
    .where(text(AGING), _keys.created_at < bindparam("p_before"))
    .order_by(_keys.created_at)
    .limit(ROWS_MAX)
)
_DROP_KEYS: Final = delete(idempotency_keys).where(text(AGING), _keys.created_at <= bindparam("p_until"))


def _idempotency_keys(tx: Tx, before_ms: int) -> Step:
    found = tx.all(OLD_KEYS, {"p_before": before_ms})
    # Keys of the same millisecond as the last one go with it: one request makes few.
    removed = tx.run(_DROP_KEYS, {"p_until": found[-1][0]}) if found else 0
    return Step(removed, len(found) == ROWS_MAX)


def _deliveries(tx: Tx, before_ms: int) -> Step:
    found = [row.id for row in tx.all(OLD_DELIVERIES, {"p_before": before_ms})]
    if found:
        tx.run(_DROP_DELIVERIES, {"p_ids": found})
    return Step(len(found), len(found) == ROWS_MAX)


def _events(tx: Tx, before_ms: int) -> Step:
    """Remove events that only tell of a message; the others are the history of their tasks."""
    _, after = pruning.cursor(tx, kinds.EVENTS)
    newest, _, _ = pruning.newest_event(tx)
    rows = tx.all(NEXT_EVENTS, {"p_after": after})
    old = list(takewhile(lambda row: row.created_at < before_ms and row.seq < newest, rows))
    echoes = [row.seq for row in old if row.message_id is not None][:ROWS_MAX]
    pruning.forget_events(tx, echoes)
    if old:
        last = echoes[-1] if len(echoes) == ROWS_MAX else old[-1].seq
        pruning.advance(tx, kinds.EVENTS, tx.now_ms, last)
    return Step(len(echoes), len(echoes) == ROWS_MAX or len(old) == EVENTS_MAX)


def _ended(tx: Tx, kind: str, before_ms: int) -> Sequence[Any]:
    """Return the next tasks that ended before then, in the order of their ends.

    Each end passes here once. A task that was reopened comes again when it ends again.
    """
    at, number = pruning.cursor(tx, kind)
    return tx.all(NEXT_ENDED, {"p_before": before_ms, "p_at": at, "p_number": number})


def _log_messages(tx: Tx, before_ms: int) -> Step:
    ended = _ended(tx, kinds.LOG_MESSAGES, before_ms)
    if not ended:
        return Step(0, more=False)
    values = {"p_ids": [row.id for row in ended], "p_before": before_ms}
    found = {row.id for row in tx.all(LOGS_OF, values)}
    if len(found) < ROWS_MAX:
        pruning.advance(tx, kinds.LOG_MESSAGES, ended[-1].completed_at, ended[-1].id)
    gone = sorted(found - {pruning.newest_event(tx)[2]})
    if gone:
        pruning.forget_events(tx, [row.seq for row in tx.all(EVENTS_OF_MESSAGES, {"p_ids": gone})])
        tx.run(_DROP_MESSAGES, {"p_ids": gone})
    return Step(len(gone), more=True)


def _history(tx: Tx, before_ms: int) -> Step:
    ended = _ended(tx, kinds.HISTORY, before_ms)
    if not ended:
        return Step(0, more=False)
    newest, _, _ = pruning.newest_event(tx)
    values = {"p_ids": [row.id for row in ended], "p_newest": newest, "p_before": before_ms}
    gone = [row.seq for row in tx.all(HISTORY_OF, values)]
    if len(gone) < ROWS_MAX:
        pruning.advance(tx, kinds.HISTORY, ended[-1].completed_at, ended[-1].id)
    pruning.forget_events(tx, gone)
    return Step(len(gone), more=True)


STEPS: Final[Mapping[str, Callable[[Tx, int], Step]]] = {
    kinds.IDEMPOTENCY_KEYS: _idempotency_keys,
    kinds.DELIVERIES: _deliveries,
    kinds.EVENTS: _events,
    kinds.LOG_MESSAGES: _log_messages,
    kinds.HISTORY: _history,
    kinds.TASKS: removal.step,
}
"""Kind -> its step: removes what is older than a time in ms, as far as one transaction should go."""
