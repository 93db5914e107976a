"""Lists of a project's tasks in board order, page by page, fast however many tasks there are.

The order is ``order_index`` (tasks without one last), then priority, most
urgent first, then creation. Every page is a merge of short index ranges, one
per status, so that its cost does not grow with the project.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, select, union_all

from dispatch.core.lifecycle import Status
from dispatch.core.priority import NUMBERS_OF
from dispatch.errors import InvalidInputError
from dispatch.service.collation import fold, folded
from dispatch.service.schema import tasks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement

    from dispatch.service.store import Tx

_c: Final = tasks.c


@dataclass(frozen=True, slots=True)
class Board:
    """What a list asks for; empty tuples and None filter nothing."""

    project_id: int
    status: tuple[Status, ...] = ()
    priority: tuple[str, ...] = ()
    assigned_to: str | None = None
    title: str | None = None
    limit: int = 20
    after: tuple[float, int, int] | None = None
    """Place (position, priority, id) of the last task that the caller has seen."""


def page(tx: Tx, board: Board) -> Sequence[Any]:
    """Return the next ``limit`` rows."""
    order = (_c.position, _c.priority.desc(), _c.id)
    ranges = [
        select(_c.id, _c.position, _c.priority)
        .where(*_filters(board), _c.status == status.value, place)
        .order_by(*order)
        for status in board.status or tuple(Status)
        for place in _places(board.after)
    ]
    parts = [select(one.limit(board.limit).subquery()) for one in ranges]
    found = union_all(*parts).subquery()
    keys = select(found.c.id).order_by(found.c.position, found.c.priority.desc(), found.c.id).limit(board.limit)
    ids = [row.id for row in tx.all(keys)]
    if not ids:
        return []
    rows = {row.id: row for row in tx.all(select(*_c).where(_c.id.in_(ids)))}
    return [rows[ident] for ident in ids]


def _filters(board: Board) -> Iterator[ColumnElement[bool]]:
    yield _c.project_id == board.project_id
    if board.priority:
        yield _c.priority.in_([number for word in board.priority for number in NUMBERS_OF[word]])
    if board.assigned_to is not None:
        yield _c.assigned_to == board.assigned_to
    if board.title:
        yield folded(_c.title).contains(fold(board.title), autoescape=True)


def _places(after: tuple[float, int, int] | None) -> Iterator[ColumnElement[bool]]:
    """Return the places behind ``after`` as ranges that an index can find."""
    if after is None:
        yield _c.id > 0
        return
    position, priority, ident = after
    yield and_(_c.position == position, _c.priority == priority, _c.id > ident)
    yield and_(_c.position == position, _c.priority < priority)
    yield _c.position > position


def cursor_of(row: Any) -> str:
    """Return the opaque cursor that continues after a row."""
    place = json.dumps([row.position, row.priority, row.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def read_cursor(text: str) -> tuple[float, int, int]:
    """Return the place in a cursor. Raises InvalidInputError."""
    try:
        place = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        position, priority, ident = place
        if type(priority) is int and type(ident) is int and 0 <= priority <= 10 and 0 <= ident < 2**63:
            found = float(position)
            if found == found and abs(found) < float("inf"):  # noqa: PLR0124 - NaN is what differs from itself
                return found, priority, ident
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    raise InvalidInputError("cursor is not one that a list returned; begin again without it.")
