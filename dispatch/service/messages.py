"""The thread of a task: append and read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, func, insert, literal, select

from dispatch.service import wire
from dispatch.service.schema import messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

_INSERT: Final = (
    insert(messages)
    .values({column.name: bindparam(column.name) for column in messages.c if column.name != "id"})
    .returning(*messages.c)
)
_NEWEST: Final = (
    select(*messages.c)
    .where(messages.c.task_id == bindparam("p_task"))
    .order_by(messages.c.id.desc())
    .limit(bindparam("p_limit"))
)


def append(
    tx: Tx,
    task: Any,
    actor: Actor,
    parts: list[Any],
    *,
    kind: str = "message",
    tags: list[str] | None = None,
    meta: dict[str, Any] | None = None,
) -> Any:
    """Append to the thread of ``task`` (its row) and return the message's row."""
    row = tx.one(
        _INSERT,
        {
            "task_id": task.id,
            "actor_type": actor.type,
            "actor_id": actor.id,
            "actor_name": actor.name,
            "kind": kind,
            "tags": None if tags is None else wire.dumps(tags),
            "meta": None if meta is None else wire.dumps(meta),
            "parts": wire.dumps(parts),
            "created_at": tx.now_ms,
        },
    )
    tx.emit("task.message", task, actor, message=(row.id, wire.message_json(row)))
    return row


def append_text(tx: Tx, task: Any, actor: Actor, text: str) -> None:
    """Append one text to the thread of ``task``."""
    append(tx, task, actor, [{"type": "text", "content": text}])


def thread(tx: Tx, task_id: int, limit: int) -> Sequence[Any]:
    """Return the newest ``limit`` messages of a task, oldest first."""
    return tx.all(_NEWEST, {"p_task": task_id, "p_limit": limit})[::-1]


def text_of(parts: str) -> str:
    """Return the texts of a message's parts, which are JSON."""
    return "\n".join(part["content"] for part in json.loads(parts) if isinstance(part.get("content"), str))


def one(tx: Tx, message_id: int) -> Any:
    """Return a message's row."""
    return tx.one(select(*messages.c).where(messages.c.id == message_id))


def page(
    tx: Tx, task_id: int, *, limit: int, since: int | None = None, kinds: Sequence[str] = (), tag: str | None = None
) -> Sequence[Any]:
    """Return messages of a task, oldest first: the newest ``limit``, or the first after ``since``."""
    c = messages.c
    query = select(*c).where(c.task_id == task_id)
    if kinds:
        query = query.where(c.kind.in_(kinds))
    if tag is not None:
        # The tags are a JSON array of texts. A comma before a quote stands between two of them only, so that the
        # JSON text of one is found nowhere else; unlike LIKE, replacing minds upper and lower case on every database.
        tags = literal(",") + func.substr(c.tags, 2)
        query = query.where(func.replace(tags, f",{wire.dumps(tag)}", "") != tags)
    if since is not None:
        return tx.all(query.where(c.id > since).order_by(c.id).limit(limit))
    return tx.all(query.order_by(c.id.desc()).limit(limit))[::-1]
