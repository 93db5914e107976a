"""What the routes do that fail and reopen many tasks of a graph at once; the others are in ``handlers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatch.errors import TaskError
from dispatch.service import cascade, failures, fields, moves, strict, wire
from dispatch.service.rows import Ref

if TYPE_CHECKING:
    from dispatch.service.handlers import Answer, Call


async def fail_many(call: Call) -> Answer:
    """POST T/fail: the fleet's bulk form for cascades; a refusal stands in its place."""
    items = strict.parse_object(call.body, fields.FAIL_MANY, required=("items",))["items"]
    wanted = [(Ref(item["id"], call.scope, call.within), item.get("reason")) for item in items]
    found = await call.store.write(lambda tx: failures.fail_many(tx, wanted, call.actor))
    shown = [
        wire.dumps({"id": item["id"], **one.as_body()})
        if isinstance(one, TaskError)
        else f'{{"id":{item["id"]},"task":{wire.thin_task_json(one)}}}'
        for item, one in zip(items, found, strict=True)
    ]
    return 200, f'{{"results":[{",".join(shown)}]}}'


async def reopen(call: Call) -> Answer:
    """POST T/{id}/reopen: the task, and if asked what failed only because of it."""
    ref = call.ref()
    found = strict.parse_object(call.body, fields.REOPEN)
    reason = found.get("reason")
    if not found.get("dependents"):
        row = await call.store.write(lambda tx: moves.reopen(tx, ref, call.actor, reason=reason))
        return 200, f'{{"task":{wire.task_json(row, call.store.clock.now_ms())}}}'
    done = await call.store.write(lambda tx: cascade.reopen(tx, ref, call.actor, reason=reason))
    behind = ",".join(map(wire.thin_task_json, done.dependents))
    task = wire.task_json(done.task, call.store.clock.now_ms())
    return 200, f'{{"task":{task},"reopened":[{behind}],"kept":{wire.dumps(done.kept)},"more":{wire.dumps(done.more)}}}'
