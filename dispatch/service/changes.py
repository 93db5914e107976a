"""Change what a task says without moving it. One transaction on a ``Tx``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import update as sql_update

from dispatch.core.priority import set_word
from dispatch.errors import InvalidInputError, TooLargeError
from dispatch.service import locks, wire
from dispatch.service.rows import ALL, Ref, lock
from dispatch.service.schema import tasks as table
from dispatch.service.tasks import position_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx


def update(
    tx: Tx,
    ref: Ref,
    actor: Actor,
    wishes: Mapping[str, Any],
    *,
    merge: bool = True,
    note: str | None = None,
    token: int | None = None,
    meta_bytes_max: int,
) -> Any:
    """Set ``assigned_to``, ``priority`` (a word), ``order_index`` and ``meta_json`` as far as they are wished.

    None unassigns, or puts the task last. ``merge`` keeps metadata that is not
    named; a null there removes its key. Raises InvalidInputError when nothing is
    wished, TooLargeError, StaleLeaseError, NotFoundError.
    """
    if not wishes and note is None:
        raise InvalidInputError("Nothing to change was given: assigned_to, priority, order_index, meta_json or note.")
    row = locks.touch(tx, ref, lock(tx, ref), actor, token)
    values: dict[str, Any] = {name: wishes[name] for name in ("assigned_to", "order_index") if name in wishes}
    if "order_index" in wishes:
        values["position"] = position_of(wishes["order_index"])
    if "priority" in wishes:
        values["priority"] = set_word(wishes["priority"], row.priority)
    if "meta_json" in wishes:
        values["meta_json"] = _meta(row, wishes["meta_json"], meta_bytes_max, merge=merge)
    row = tx.one(sql_update(table).where(table.c.id == row.id).values(**values, updated_at=tx.now_ms).returning(*ALL))
    changed = f"changed {', '.join(sorted(wishes))}" if wishes else None
    tx.emit("task.updated", row, actor, note="; ".join(part for part in (changed, note) if part))
    return row


def _meta(row: Any, wish: dict[str, Any], bytes_max: int, *, merge: bool) -> str:
    before = json.loads(row.meta_json) if merge and row.meta_json else {}
    found = before | wish
    if merge:
        found = {name: value for name, value in found.items() if value is not None or name not in wish}
    text = wire.dumps(found)
    size = len(text.encode())
    if size > bytes_max:
        raise TooLargeError(f"meta_json would have {size} bytes of JSON; at most {bytes_max} are allowed.")
    return text
