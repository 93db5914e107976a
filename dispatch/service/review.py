"""Sending a task in review back with a note, and what its next attempt is told of that. One transaction on a ``Tx``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dispatch.core import review
from dispatch.core.lifecycle import Status, check_move
from dispatch.errors import UnexpectedStatusError
from dispatch.service import leases, messages, moves, wire
from dispatch.service.rows import lock

if TYPE_CHECKING:
    from dispatch.ats.model import Actor
    from dispatch.service.rows import Ref
    from dispatch.service.store import Tx

_LOOKED_AT: Final = 200
"""How many messages of a thread are looked at."""


def bounce(tx: Tx, ref: Ref, actor: Actor, *, note: str, default_lease_ms: int) -> Any:
    """Put the note on the thread and the task back into todo, its counters afresh; its outputs stay.

    Raises UnexpectedStatusError when it is not in review, LeaseHeldError, NotFoundError.
    """
    row = lock(tx, ref)
    if row.status != Status.IN_REVIEW:
        raise UnexpectedStatusError(
            f"Task {row.id} is in {ref.words[row.status]} status, not in {ref.words[Status.IN_REVIEW]}: only what waits"
            " for a review can be sent back.",
            status=ref.words[row.status],
        )
    check_move(Status.IN_REVIEW, Status.TODO, ref.words)
    leases.check_right(tx, ref, row, actor, None)
    messages.append(tx, row, actor, [{"type": "text", "content": note}], kind="note", tags=[review.TAG])
    return moves.move(tx, ref, row, Status.TODO, actor, default_lease_ms=default_lease_ms)


def of_task(tx: Tx, task_id: int) -> dict[str, Any]:
    """Return the newest note that sent the task back, and what people said on its thread, within bounds.

    Earlier notes are among what was said: what they asked for is still to be met.
    """
    found: list[dict[str, Any]] = []
    newest = None
    for row in messages.page(tx, task_id, limit=_LOOKED_AT, kinds=("message", "note")):
        tags = json.loads(row.tags) if row.tags is not None else []
        if review.TAG in tags:
            newest = len(found)
        if review.TAG in tags or row.actor_type == "human" or review.REMARK in tags:
            text = messages.text_of(row.parts)
            found.append({"from": row.actor_name, "at": wire.iso(row.created_at), "text": text})
    note = "" if newest is None else found.pop(newest)["text"]
    said = review.bounded(note, "", found)
    return {"note": said.note, "messages": list(said.messages)}
