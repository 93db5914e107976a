"""How far removing has come, whose turn it is, and up to where the feed has gaps: one row each.

Every function is one transaction on a ``Tx``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, delete, insert, select, update

from dispatch.service.schema import events, pruning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from dispatch.service.store import Tx

ROWS_MAX: Final = 500
"""How many rows a step removes of one table at most: everybody else's calls wait for it."""

_TURN: Final = "turn"
_GAP: Final = "gap"
_FIND: Final = select(pruning.c.at, pruning.c.number, pruning.c.by).where(pruning.c.name == bindparam("p_name"))
_SET: Final = (
    update(pruning)
    .where(pruning.c.name == bindparam("p_name"))
    .values(at=bindparam("p_at"), number=bindparam("p_number"), by=bindparam("p_by"))
)
_ADD: Final = insert(pruning)
_NEWEST: Final = select(events.c.seq, events.c.task_id, events.c.message_id).order_by(events.c.seq.desc()).limit(1)
_FORGET: Final = delete(events).where(events.c.seq.in_(bindparam("p_seqs", expanding=True)))


@dataclass(frozen=True, slots=True)
class Step:
    """How many a step removed, and whether there may be more to remove."""

    removed: int
    more: bool


def _put(tx: Tx, name: str, at: int, number: int = 0, by: str | None = None) -> None:
    if not tx.run(_SET, {"p_name": name, "p_at": at, "p_number": number, "p_by": by}):
        tx.run(_ADD, {"name": name, "at": at, "number": number, "by": by})


def _get(tx: Tx, name: str) -> Any:
    return tx.one(_FIND, {"p_name": name})


def take_turn(tx: Tx, process: str, *, for_ms: int) -> bool:
    """Say whether ``process`` may remove now; then nobody else may for ``for_ms``, unless it says otherwise before."""
    row = _get(tx, _TURN)
    if row is not None and row.by != process and row.at > tx.now_ms:
        return False
    _put(tx, _TURN, tx.now_ms + for_ms, by=process)
    return True


def cursor(tx: Tx, kind: str) -> tuple[int, int]:
    """Return the (time, number) up to which ``kind`` was dealt with; (0, 0) at the beginning."""
    row = _get(tx, kind)
    return (0, 0) if row is None else (int(row.at), int(row.number))


def advance(tx: Tx, kind: str, at: int, number: int) -> None:
    """Note that ``kind`` was dealt with up to here."""
    _put(tx, kind, at, number)


def gap(tx: Tx) -> int:
    """Return the number of the newest event that was removed, 0 if none was."""
    row = _get(tx, _GAP)
    return 0 if row is None else int(row.number)


def newest_event(tx: Tx) -> Any:
    """Return (seq, task_id, message_id) of the newest event of all, which must stay: the next number goes by it."""
    return tx.one(_NEWEST) or (0, 0, None)


def forget_events(tx: Tx, seqs: Sequence[int]) -> None:
    """Remove events, and note the gap in the same transaction, so that no subscriber misses them untold."""
    if seqs:
        tx.run(_FORGET, {"p_seqs": seqs})
        if max(seqs) > gap(tx):
            _put(tx, _GAP, tx.now_ms, max(seqs))
