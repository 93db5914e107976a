"""What the routes about deliveries do (extension ``deliveries``); the others are in ``handlers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.errors import InvalidInputError
from dispatch.service import deliveries, fields, strict, wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatch.service.handlers import Answer, Call

TAKEN_MAX: Final = 100
LEASE_MS_MAX: Final = 3_600_000
DELAY_MS_MAX: Final = 7 * 86_400_000
_ID_CHARS_MAX: Final = 36

_OUTCOMES: Final = {
    "delivered": deliveries.DELIVERED,
    "retry": deliveries.WAITING,
    "failed": deliveries.FAILED,
    "empty": deliveries.EMPTY,
}


def _channels(name: str, value: Any) -> tuple[str, ...]:
    found: tuple[str, ...] = strict.each(strict.label(fields.NAME_CHARS_MAX), 50)(name, value)
    return found


def _task(name: str, value: str) -> int | str:
    ident = strict.task_ident(value)
    if ident is None:
        raise InvalidInputError(f"{name} must be a task's number or its UUID.")
    return ident


_TAKE: Final = {
    "channels": _channels,
    "limit": strict.whole(1, TAKEN_MAX),
    "lease_duration": strict.whole(100, LEASE_MS_MAX),
}
_REPORT: Final = {
    "token": strict.whole(1, strict.INTEGER_MAX),
    "outcome": strict.one_of(_OUTCOMES),
    "delay_ms": strict.whole(0, DELAY_MS_MAX),
    "error": strict.text(200, nullable=True),
    "counted": strict.flag,
}
_LIST: Final = {
    "task": _task,
    "state": strict.one_of({word: word for word in deliveries.STATES}),
    "channel": strict.listed(strict.label(fields.NAME_CHARS_MAX), 50),
    "limit": strict.digits(1, fields.LIST_MAX),
}


def _object(row: Any) -> dict[str, Any]:
    """Return a delivery as it travels."""
    return {
        "id": row.id,
        "task_id": row.task_id,
        "status": row.status,
        "settled_at": wire.iso(row.settled_at),
        "state": row.state,
        "tries": row.tries,
        "token": row.token,
        "due_at": wire.iso(row.due_at) if row.state == deliveries.WAITING else None,
        "taken_until": wire.iso(row.taken_until),
        "ended_at": wire.iso(row.ended_at),
        "last_error": row.last_error,
    }


def _range(call: Call, channels: tuple[str, ...] = ()) -> deliveries.Range:
    return deliveries.Range(call.scope, call.within, channels)


def _ident(call: Call) -> str:
    return call.names[0][:_ID_CHARS_MAX]


async def take(call: Call) -> Answer:
    """POST D/take."""
    found = strict.parse_object(call.body, _TAKE, required=("channels",))
    where = _range(call, found["channels"])
    lease_ms, limit = found.get("lease_duration", 60_000), found.get("limit", 20)
    # Most looks find nothing; the writer is not troubled with them.
    next_ms = await call.store.read(lambda tx: deliveries.next_due(tx, where))
    if next_ms is None or next_ms > 0:
        return 200, wire.dumps({"deliveries": [], "next_due_ms": next_ms})
    rows, next_ms = await call.store.write(lambda tx: deliveries.take(tx, where, lease_ms=lease_ms, limit=limit))
    return 200, wire.dumps({"deliveries": [_object(row) for row in rows], "next_due_ms": next_ms})


async def report(call: Call) -> Answer:
    """POST D/{id}/report."""
    found = strict.parse_object(call.body, _REPORT, required=("token", "outcome"))
    outcome = deliveries.Outcome(
        found["outcome"], found.get("delay_ms", 0), found.get("error"), counted=found.get("counted", True)
    )
    row = await call.store.write(
        lambda tx: deliveries.report(tx, _ident(call), _range(call), token=found["token"], outcome=outcome)
    )
    return 200, wire.dumps({"delivery": _object(row)})


async def resend(call: Call) -> Answer:
    """POST D/{id}/resend."""
    strict.parse_object(call.body, {})
    row = await call.store.write(lambda tx: deliveries.resend(tx, _ident(call), _range(call), call.actor))
    return 200, wire.dumps({"delivery": _object(row)})


async def list_deliveries(call: Call) -> Answer:
    """GET D."""
    found = strict.parse_query(call.query, _LIST)
    where = _range(call, found.pop("channel", ()))
    rows = await call.store.read(lambda tx: deliveries.find(tx, where, **found))
    return 200, wire.dumps({"deliveries": [_object(row) for row in rows], "count": len(rows)})


ROUTES: Final[dict[tuple[str, ...], dict[str, tuple[Callable[[Call], Awaitable[Answer]], int]]]] = {
    ("deliveries",): {"GET": (list_deliveries, 0)},
    ("deliveries", "take"): {"POST": (take, fields.SMALL_BYTES_MAX)},
    ("deliveries", "*", "report"): {"POST": (report, fields.SMALL_BYTES_MAX)},
    ("deliveries", "*", "resend"): {"POST": (resend, fields.SMALL_BYTES_MAX)},
}
