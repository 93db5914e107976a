"""Sealed tasks, as the service sees them, which can open none: a mark, and the register of their messages.

Every function with a ``Tx`` is one transaction on it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, insert, select

from dispatch.core.sealed import is_sealed
from dispatch.errors import ReusedSealError
from dispatch.service.leases import check_right
from dispatch.service.rows import lock
from dispatch.service.schema import sealed_messages, tasks

if TYPE_CHECKING:
    from typing import Any

    from dispatch.ats.model import Actor
    from dispatch.service.rows import Ref
    from dispatch.service.store import Tx

_FIRST: Final = (
    select(sealed_messages.c.task_id.label("id"), tasks.c.project_id)
    .outerjoin(tasks, tasks.c.id == sealed_messages.c.task_id)
    .where(sealed_messages.c.digest == bindparam("p_digest"))
)
"""The task need not exist any more: whoever kept a copy of its message could else have it run again."""
_INSERT: Final = insert(sealed_messages)


def is_sealed_text(payload: str | None) -> bool:
    """Say whether a payload, as JSON text, claims to be sealed."""
    return payload is not None and '"encrypted"' in payload and is_sealed(json.loads(payload))


def register(tx: Tx, ref: Ref, actor: Actor, *, token: int | None, digest: str) -> Any:
    """Note that a sealed message is the content of this task, and return its row.

    The same message of the same task is answered alike, in every later attempt too.
    Without a token whoever tells of the task's end asks whether it is no copy; that takes nothing from a holder.
    Raises ReusedSealError when it was another task's, StaleLeaseError, NotFoundError.
    """
    row = lock(tx, ref)
    if token is not None:
        check_right(tx, ref, row, actor, token)
    first = tx.one(_FIRST, {"p_digest": digest})
    if first is None:
        tx.run(_INSERT, {"digest": digest, "task_id": row.id, "seen_at": tx.now_ms})
    elif first.id != row.id:
        facts = {"first_id": first.id} if first.project_id == row.project_id else {}
        raise ReusedSealError(f"The sealed message of task {row.id} came in another task before.", **facts)
    return row
