"""The results of what a task depends on, read for whoever starts it. One transaction on a ``Tx``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, case, func, select

from dispatch.core import results
from dispatch.core.sealed import RESULT_NOTE
from dispatch.service import wire
from dispatch.service.schema import task_dependencies, tasks

if TYPE_CHECKING:
    from dispatch.service.store import Tx

_CHARS_MAX: Final = 4 * results.ANSWER_BYTES_MAX
"""How much of stored outputs is read: more than fits in any case, even if all of it is escapes."""
_HEAD: Final = '[{"response":"'
"""How the outputs of a worker begin."""
_SEALED_HEAD: Final = '[{"encrypted_response":'
"""The same where the task was sealed."""

_needed: Final = tasks.alias("needed")
_OF_TASK: Final = (
    select(
        _needed.c.id,
        _needed.c.title,
        _needed.c.status,
        func.length(_needed.c.outputs).label("chars"),
        case(
            (func.length(_needed.c.outputs) > _CHARS_MAX, func.substr(_needed.c.outputs, 1, _CHARS_MAX)),
            else_=_needed.c.outputs,
        ).label("outputs"),
    )
    .join(task_dependencies, task_dependencies.c.depends_on_id == _needed.c.id)
    .where(task_dependencies.c.task_id == bindparam("p_id"))
    .order_by(_needed.c.id)
)


def of_dependencies(tx: Tx, task_id: int) -> list[dict[str, Any]]:
    """Return the bounded results of everything that the task depends on, in the order of their numbers."""
    return results.bounded(
        [
            {"id": row.id, "title": row.title, "status": wire.word_of(row.status), "outputs": _outputs(row)}
            for row in tx.all(_OF_TASK, {"p_id": task_id})
        ]
    )


def _outputs(row: Any) -> Any:
    """Return outputs as a value. Of what is too long, the beginning of its text, longer than will be shown."""
    if row.outputs is None:
        return None
    if row.chars <= _CHARS_MAX:
        return json.loads(row.outputs)
    text: str = row.outputs
    if text.startswith(_SEALED_HEAD):
        return [{"response": RESULT_NOTE}]
    if text.startswith(_HEAD):
        text = _unescaped(text[len(_HEAD) :])
    return [{"response": text, "truncated": True}]


def _unescaped(text: str) -> str:
    """Return the text that a JSON string stands for whose end may be cut off."""
    try:
        # A quote that ends it may stand somewhere; otherwise the cut may have hit an escape, which is 12 long at most.
        return str(json.JSONDecoder(strict=False).raw_decode(f'"{text}')[0])
    except ValueError:
        for less in range(13):
            try:
                return str(json.loads(f'"{text[: len(text) - less]}"', strict=False))
            except ValueError:
                continue
    return text
