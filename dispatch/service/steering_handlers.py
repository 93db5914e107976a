"""What the routes about steering do (extension ``steering``); the others are in ``handlers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.core.steering import KINDS
from dispatch.errors import ForbiddenError, InvalidInputError, NotFoundError
from dispatch.service import fields, steering, strict, wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatch.service.handlers import Answer, Call

FOR_MS_MAX: Final = 366 * 86_400_000
NOTE_CHARS_MAX: Final = 500
_HOST_CHARS_MAX: Final = 255
_name: Final = strict.label(_HOST_CHARS_MAX)


def _until(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a time such as 2026-01-31T12:00:00.000Z, or null.")
    return strict.moment(name, value)


_PUT: Final = {
    "note": strict.text(NOTE_CHARS_MAX),
    "until": _until,
    "for_ms": strict.whole(1, FOR_MS_MAX, nullable=True),
}


def _object(row: Any, now_ms: int) -> dict[str, Any]:
    """Return an order as it travels."""
    return {
        "kind": row.kind,
        "name": row.name,
        "note": row.note,
        "by": row.by,
        "at": wire.iso(row.at),
        "until": wire.iso(row.until),
        "left_ms": None if row.until is None else max(0, row.until - now_ms),
    }


def _named(call: Call) -> tuple[str, str]:
    kind, name = call.names
    if kind not in KINDS:
        raise NotFoundError(f"There is no order about a {kind[:80]!r}; orders are about a {', a '.join(KINDS)}.")
    if call.within is not None:
        raise ForbiddenError("This key is for some projects only; channels, queues and hosts belong to all of them.")
    return kind, _name("name", strict.check_text(name))


async def list_orders(call: Call) -> Answer:
    """GET /steering."""
    strict.parse_query(call.query, {})
    rows = await call.store.read(steering.in_force)
    now_ms = call.store.clock.now_ms()
    return 200, wire.dumps({"steering": [_object(row, now_ms) for row in rows], "count": len(rows)})


async def put(call: Call) -> Answer:
    """PUT /steering/{kind}/{name}."""
    kind, name = _named(call)
    found = strict.parse_object(call.body, _PUT)
    until_ms, for_ms = found.get("until"), found.get("for_ms")
    if until_ms is not None and for_ms is not None:
        raise InvalidInputError("Give until or for_ms, not both.")
    now_ms = call.store.clock.now_ms()
    if for_ms is not None:
        until_ms = now_ms + for_ms
    if until_ms is not None and not now_ms < until_ms <= now_ms + FOR_MS_MAX:
        raise InvalidInputError(f"until is {wire.iso(until_ms)}; it must lie ahead, by at most 366 days.")
    note = found.get("note", "")
    row = await call.store.write(lambda tx: steering.put(tx, kind, name, call.actor, note=note, until_ms=until_ms))
    return 200, wire.dumps({"order": _object(row, now_ms)})


async def remove(call: Call) -> Answer:
    """DELETE /steering/{kind}/{name}."""
    kind, name = _named(call)
    strict.parse_object(call.body, {})
    return 200, wire.dumps({"removed": await call.store.write(lambda tx: steering.remove(tx, kind, name))})


ROUTES: Final[dict[tuple[str, ...], dict[str, tuple[Callable[[Call], Awaitable[Answer]], int]]]] = {
    ("steering",): {"GET": (list_orders, 0)},
    ("steering", "*", "*"): {"PUT": (put, fields.SMALL_BYTES_MAX), "DELETE": (remove, fields.SMALL_BYTES_MAX)},
}
