"""What a task is handed of the results of the tasks that it depends on, within bounds. Pure.

A result is ``{"id", "title", "status", "outputs"}``; outputs that do not fit
are cut to the beginning of their text and marked ``truncated``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.sealed import RESULT_NOTE, is_sealed_answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ANSWER_BYTES_MAX: Final = 32_768
"""All results together in the answer to ``start``, as JSON."""
ENVIRONMENT_BYTES_MAX: Final = 8_192
"""The value of ``ATS_DEPENDENCIES``, as JSON."""
_UNNAMEABLE: Final = re.compile("[^A-Za-z0-9_-]")
_TITLE_BYTES_MAX: Final = 512
_TITLES_BYTES_MAX: Final = 8_192


def text_of(outputs: Any) -> str:
    """Return outputs as text: responses as they are, a note for sealed ones, the rest as JSON."""
    items = outputs if isinstance(outputs, list) else [] if outputs is None else [outputs]
    return "\n".join(_text(item) for item in items)


def _text(item: Any) -> str:
    if isinstance(item, dict) and isinstance(item.get("response"), str):
        return str(item["response"])
    if is_sealed_answer(item):
        return RESULT_NOTE
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def _size(value: Any, *, ascii_only: bool = False) -> int:
    return len(json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode("utf-8", "replace"))


def cut(text: str, bytes_max: int, *, ascii_only: bool = False) -> str:
    """Return the beginning of a text whose JSON form has at most ``bytes_max`` bytes, quotes included."""
    low, high = 0, min(len(text), max(0, bytes_max))
    while low < high:
        middle = (low + high + 1) // 2
        if _size(text[:middle], ascii_only=ascii_only) <= bytes_max:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` fairly: what the small do not need goes to the large."""
    found = [0] * len(sizes)
    left, count = max(0, total), len(sizes)
    for at in sorted(range(len(sizes)), key=sizes.__getitem__):
        found[at] = min(sizes[at], left // count)
        left -= found[at]
        count -= 1
    return found


def bounded(results: Sequence[Mapping[str, Any]], bytes_max: int = ANSWER_BYTES_MAX) -> list[dict[str, Any]]:
    """Return the results, cut so that all of them together are at most ``bytes_max`` bytes of compact JSON.

    Each keeps its id and status; a title is shortened, outputs are cut. At most
    256 results fit however small their share is; more are left out.
    """
    if not results:
        return []
    title_max = min(_TITLE_BYTES_MAX, _TITLES_BYTES_MAX // len(results))
    bare: list[dict[str, Any]] = [
        {"id": one["id"], "title": cut(str(one["title"]), title_max), "status": one["status"], "outputs": None}
        for one in results
    ]
    room = bytes_max - _size(bare)
    whole = [0 if one["outputs"] is None else _size(one["outputs"]) for one in results]
    for one, found, size, share in zip(results, bare, whole, shares(whole, room), strict=True):
        if size == 0:
            continue
        text = text_of(one["outputs"]) if size > share else ""
        if size <= share:
            found["outputs"] = one["outputs"]
        elif text == RESULT_NOTE and _size(sealed := [{"response": text}]) <= share:
            found["outputs"] = sealed
        else:
            head = [{"response": "", "truncated": True, "characters": len(text)}]
            head[0]["response"] = cut(text, share - _size(head) + len('""'))
            if _size(head) <= share:
                found["outputs"] = head
            else:
                found["truncated"] = True
    while bare and _size(bare) > bytes_max:
        bare.pop()
    return bare


def blocks(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the results as named blocks of a prompt, one for each task.

    The name has the task's id only; everything that somebody wrote is inside the block.
    """
    found = {}
    for one in results:
        head = f"title: {json.dumps(one['title'], ensure_ascii=False)}\nstatus: {one['status']}"
        text = text_of(one["outputs"])
        cut_off = _is_cut(one)
        note = "\n\n(only its beginning)" if cut_off and text else "\n\n(too long to be shown)" if cut_off else ""
        found[f"dependency-{_UNNAMEABLE.sub('_', str(one['id']))[:64]}"] = (
            f"{head}{note}\n\n{text}" if text else f"{head}{note}"
        )
    return found


def _is_cut(one: Mapping[str, Any]) -> bool:
    outputs = one["outputs"]
    first = outputs[0] if isinstance(outputs, list) and outputs else {}
    return bool(one.get("truncated") or (isinstance(first, dict) and first.get("truncated")))


def environment_value(results: Sequence[Mapping[str, Any]], bytes_max: int = ENVIRONMENT_BYTES_MAX) -> str:
    """Return ``ATS_DEPENDENCIES``: JSON of ids, states and responses, cut; ASCII, so that any shell can hold it."""
    bare = [{"id": one["id"], "status": one["status"], "response": ""} for one in results]
    texts = [text_of(one["outputs"]) for one in results]
    room = bytes_max - _size(bare, ascii_only=True)
    sizes = [_size(text, ascii_only=True) - len('""') for text in texts]
    for one, text, share in zip(bare, texts, shares(sizes, room), strict=True):
        one["response"] = cut(text, share + len('""'), ascii_only=True)
    while bare and _size(bare, ascii_only=True) > bytes_max:
        bare.pop()
    return json.dumps(bare, separators=(",", ":"))
