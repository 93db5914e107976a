"""Orders of an operator: paused channels and queues, drained hosts. Kept here, obeyed by the fleet.

Every function is one transaction on a ``Tx``. An order that is over is
forgotten with the next change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, delete, insert, select, update

from dispatch.service.schema import steering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

_C: Final = steering.c
_NAMED: Final = (_C.kind == bindparam("p_kind"), _C.name == bindparam("p_name"))
_CHANGE: Final = (
    update(steering)
    .where(*_NAMED)
    .values(note=bindparam("p_note"), until=bindparam("p_until"), by=bindparam("p_by"), at=bindparam("p_at"))
)
_FORGET: Final = delete(steering).where(_C.until.is_not(None), _C.until <= bindparam("p_now"))
_REMOVE: Final = delete(steering).where(*_NAMED)


def in_force(tx: Tx) -> Sequence[Any]:
    """Return the orders that hold now, by kind and name."""
    holds = _C.until.is_(None) | (_C.until > tx.now_ms)
    return tx.all(select(*_C).where(holds).order_by(_C.kind, _C.name))


def put(tx: Tx, kind: str, name: str, actor: Actor, *, note: str = "", until_ms: int | None = None) -> Any:
    """Give an order, or change the one that there is; return its row. ``until_ms`` is a time of the service's clock."""
    tx.run(_FORGET, {"p_now": tx.now_ms})
    values = {"note": note, "until": until_ms, "by": actor.id[:255], "at": tx.now_ms}
    if not tx.run(_CHANGE, {"p_kind": kind, "p_name": name, **{f"p_{key}": item for key, item in values.items()}}):
        tx.run(insert(steering).values(kind=kind, name=name, **values))
    return tx.one(select(*_C).where(*_NAMED), {"p_kind": kind, "p_name": name})


def remove(tx: Tx, kind: str, name: str) -> bool:
    """Take an order back; say whether there was one."""
    tx.run(_FORGET, {"p_now": tx.now_ms})
    return tx.run(_REMOVE, {"p_kind": kind, "p_name": name}) > 0
