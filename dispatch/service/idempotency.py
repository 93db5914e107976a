"""A request that is made twice happens once: keys that callers choose, and what came of them.

The functions are part of the transaction of the request itself. A key is kept
for a time (``dispatch.core.retention``); a UUID that a task was created with
is one too, and kept for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, insert, select

from dispatch.errors import ConflictError, NotFoundError
from dispatch.service.schema import idempotency_keys

if TYPE_CHECKING:
    from dispatch.service.store import Tx

_FIND: Final = select(idempotency_keys.c.digest, idempotency_keys.c.answer_id).where(
    idempotency_keys.c.scope == bindparam("p_scope"), idempotency_keys.c.key == bindparam("p_key")
)
_INSERT: Final = insert(idempotency_keys)


def recall(tx: Tx, scope: str, key: str, digest: str) -> int | None:
    """Return what the same request with this key made before, or None if the key is new.

    Raises ConflictError when the key was used for a different request.
    """
    row = tx.one(_FIND, {"p_scope": scope, "p_key": key})
    if row is None:
        return None
    if row.digest != digest:
        raise ConflictError(
            f"The key {key!r} was used for a different request before.",
            next_step="Repeat the first request unchanged, or choose a new key for this one.",
        )
    return int(row.answer_id)


def remember(tx: Tx, scope: str, key: str, digest: str, answer_id: int) -> None:
    """Note what came of the request."""
    values = {"scope": scope, "key": key, "digest": digest, "answer_id": answer_id, "created_at": tx.now_ms}
    tx.run(_INSERT, values)


def answer_gone(key: str) -> NotFoundError:
    """Return the refusal of a repeated request whose first answer is kept no longer: it is not done a second time."""
    return NotFoundError(
        f"What the request with the key {key!r} made is not kept any more.",
        next_step="Choose a new key to have it made anew.",
    )
