"""post_task_message and list_task_messages: one thread with what ATS clients write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.errors import NotFoundError
from dispatch.service import idempotency, locks, messages
from dispatch.service.access import Access, agent_uuid
from dispatch.service.fields import MESSAGE_KINDS
from dispatch.service.leases import digest_of
from dispatch.service.rows import fetch, lock
from dispatch.service.tools import params as p
from dispatch.service.tools import shapes
from dispatch.service.tools.locking import TOKEN
from dispatch.service.tools.model import Tool
from dispatch.service.tools.reading import known_project

if TYPE_CHECKING:
    from dispatch.service.store import Tx
    from dispatch.service.tools.model import Call

TAGS_MAX: Final = 32
TAG_CHARS_MAX: Final = 128
LIST_MAX: Final = 200


def _check_project(tx: Tx, call: Call, row: Any) -> None:
    scope = call.arguments["project_key"]
    if row.project_id != known_project(tx, call, scope):
        raise NotFoundError(
            f"There is no task {row.uuid} in project {scope.org}/{scope.project}.",
            next_step="Correct project_key: core_get_task shows the task's.",
        )


async def post_message(call: Call) -> dict[str, Any]:
    """Append to a task's thread."""
    found, ref, actor = call.arguments, call.ref(), call.actor()
    kind, tags, meta = found.get("kind", "message"), found.get("tags"), found.get("meta")
    key = found.get("idempotency_key")
    parts = [{"type": "text", "content": found["body"]}]

    def work(tx: Tx) -> dict[str, Any]:
        row = lock(tx, ref)
        _check_project(tx, call, row)
        scope = f"message:{row.id}:{agent_uuid(actor.type, actor.id)}"
        digest = digest_of("message", found["body"], kind, tags, meta)
        known = None if key is None else idempotency.recall(tx, scope, key, digest)
        if key is not None and known is not None:
            first = messages.one(tx, known)
            if first is None:
                raise idempotency.answer_gone(key)
            return {**shapes.show_message(first, row.uuid), "created": False}
        row = locks.touch(tx, ref, row, actor, found.get("lease_token"))
        tag_list = None if tags is None else list(tags)
        said = messages.append(tx, row, actor, parts, kind=kind, tags=tag_list, meta=meta)
        if key is not None:
            idempotency.remember(tx, scope, key, digest, said.id)
        return {**shapes.show_message(said, row.uuid), "created": True}

    return await call.store.write(work)


async def list_messages(call: Call) -> dict[str, Any]:
    """Show a task's thread, oldest first."""
    found, ref = call.arguments, call.ref()
    limit, since = found.get("limit", 50), found.get("since")
    kinds, tag = found.get("kind", ()), found.get("tag")

    def work(tx: Tx) -> dict[str, Any]:
        row = fetch(tx, ref)
        _check_project(tx, call, row)
        rows = messages.page(tx, row.id, limit=limit + 1, since=since, kinds=kinds, tag=tag)
        more = len(rows) > limit
        # Without `since` the newest come, and what does not fit is older.
        rows = rows[:limit] if since is not None or not more else rows[1:]
        shown = [shapes.show_message(one, row.uuid) for one in rows]
        if since is None:
            count = shapes.fitting(shown[::-1])
            more = more or count < len(shown)
            shown = shown[len(shown) - count :]
        else:
            count = shapes.fitting(shown)
            more = more or count < len(shown)
            shown = shown[:count]
        last = shown[-1]["message_id"] if shown else (since or 0)
        return {"messages": shown, "count": count, "next_since": last, "more": more}

    return await call.store.read(work)


_WHERE: Final = {"project_key": p.PROJECT, "task_id": p.UUID}
_TAG: Final = p.text(TAG_CHARS_MAX, chars_min=1)
_MESSAGE: Final = {"message_id": {"type": "integer"}, "body": {"type": "string"}, "kind": {"type": "string"}}

TOOLS: Final = (
    Tool(
        name="post_task_message",
        title="Write to a task's thread",
        description="Append to the thread that agents, people and workers of a task share. kind: message (to others),"
        " note (finding), log (record). The same idempotency_key with the same message is posted once.",
        run=post_message,
        params={
            **_WHERE,
            "agent_id": p.UUID,
            "body": p.text(p.BODY_CHARS_MAX, chars_min=1),
            "kind": p.one_of(MESSAGE_KINDS),
            "tags": p.each(_TAG, TAGS_MAX),
            "meta": p.META,
            "lease_token": TOKEN,
            "idempotency_key": p.KEY,
        },
        required=("project_key", "task_id", "agent_id", "body"),
        output={"type": "object", "properties": _MESSAGE, "required": list(_MESSAGE)},
    ),
    Tool(
        name="list_task_messages",
        title="Read a task's thread",
        description="Return a task's thread, oldest first: the newest limit messages or, with since (a message_id),"
        " those after it. next_since continues; more says whether messages were left out.",
        run=list_messages,
        params={
            **_WHERE,
            "limit": p.whole(1, LIST_MAX, 50),
            "since": p.whole(0, 2**63 - 1),
            "kind": p.each(p.one_of(MESSAGE_KINDS), 3),
            "tag": _TAG,
        },
        required=("project_key", "task_id"),
        output={
            "type": "object",
            "properties": {
                "messages": {
                    "type": "array",
                    "items": {"type": "object", "properties": _MESSAGE, "required": list(_MESSAGE)},
                },
                "count": {"type": "integer"},
                "next_since": {"type": "integer"},
                "more": {"type": "boolean"},
            },
            "required": ["messages", "count", "next_since", "more"],
        },
        access=Access.READ,
        read_only=True,
        idempotent=True,
    ),
)
