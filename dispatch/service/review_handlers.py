"""What the routes do that hand in a result, approve it or send it back; the others are in ``handlers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dispatch.errors import TooLargeError
from dispatch.service import fields, moves, review, strict, wire

if TYPE_CHECKING:
    from dispatch.service.handlers import Answer, Call


def _envelope(row: Any, call: Call) -> str:
    return f'{{"task":{wire.task_json(row, call.store.clock.now_ms())}}}'


async def complete(call: Call) -> Answer:
    """POST T/{id}/complete."""
    found = strict.parse_object(call.body, fields.COMPLETE)
    ref = call.report_ref(found.get("fencing_token"))
    outputs = found.get("outputs")
    bytes_max = fields.OUTPUTS_BYTES_MAX
    if outputs is not None and len(wire.dumps(outputs).encode()) > bytes_max:
        raise TooLargeError(f"outputs has more than {bytes_max} bytes of JSON; keep large results elsewhere.")
    row = await call.store.write(
        lambda tx: moves.complete(
            tx,
            ref,
            call.actor,
            outputs=outputs,
            token=found.get("fencing_token"),
            review=found.get("review", False),
        )
    )
    return 200, _envelope(row, call)


async def bounce(call: Call) -> Answer:
    """POST T/{id}/bounce: a note, and back to todo."""
    ref = call.ref()
    note = strict.parse_object(call.body, fields.BOUNCE, required=("note",))["note"]
    lease_ms = call.context.default_lease_ms
    row = await call.store.write(lambda tx: review.bounce(tx, ref, call.actor, note=note, default_lease_ms=lease_ms))
    return 200, _envelope(row, call)
