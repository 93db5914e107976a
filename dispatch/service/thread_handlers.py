"""What the routes do that write down what happened to a task: its thread, and the register of sealed messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatch.service import fields, messages, seals, strict, wire
from dispatch.service.leases import check_right
from dispatch.service.rows import fetch, lock

if TYPE_CHECKING:
    from typing import Any

    from dispatch.service.handlers import Answer, Call
    from dispatch.service.store import Tx


async def post_message(call: Call) -> Answer:
    """POST T/{id}/messages; under a fencing token only as long as the attempt that says it is the current one."""
    found = strict.parse_object(call.body, fields.POST_MESSAGE, required=("parts",))
    parts, kind, token = fields.check_parts(found["parts"]), found.get("kind", "message"), found.get("fencing_token")
    ref = call.report_ref(token)

    def work(tx: Tx) -> Any:
        task = fetch(tx, ref) if token is None else lock(tx, ref)
        if token is not None:
            check_right(tx, ref, task, call.actor, token)
        return messages.append(tx, task, call.actor, parts, kind=kind, meta=found.get("meta"))

    return 201, f'{{"message":{wire.message_json(await call.store.write(work))}}}'


async def list_messages(call: Call) -> Answer:
    """GET T/{id}/messages."""
    ref = call.ref()
    most = fields.THREAD_MAX
    limit = strict.parse_query(call.query, {"limit": strict.digits(1, most)}).get("limit", most)
    objects = await call.store.read(
        lambda tx: [wire.message_json(row) for row in messages.thread(tx, fetch(tx, ref).id, limit)]
    )
    return 200, f'{{"messages":[{",".join(objects)}]}}'


async def seal(call: Call) -> Answer:
    """POST T/{id}/seal."""
    found = strict.parse_object(call.body, fields.SEAL, required=("digest",))
    token = found.get("fencing_token")
    ref = call.report_ref(token)
    row = await call.store.write(lambda tx: seals.register(tx, ref, call.actor, token=token, digest=found["digest"]))
    return 200, f'{{"task":{wire.thin_task_json(row)}}}'
