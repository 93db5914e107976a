"""What people are told, as text: one task in a few lines, many of them counted and listed. Pure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE_CHARS_MAX: Final = 200
DETAIL_CHARS_MAX: Final = 1_000
LISTED_MAX: Final = 20

_WORDS: Final = {
    "failed": "failed",
    "in_review": "waiting for review",
    "rejected": "rejected",
    "cancelled": "cancelled",
    "completed": "completed",
    "picked_up": "picked up",
}
"""What each event is called, the most urgent first."""
_UNSAFE: Final = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ud800-\\udfff]+"
)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to a task. ``kind`` is a word of the setting ``notify_on``.

    ``title`` and ``detail`` are empty for an encrypted task.
    """

    task_id: str
    kind: str
    title: str = ""
    channel: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A headline, and a text that may be empty. Plain text: whoever sends it escapes it."""

    head: str
    text: str = ""


def compose(notices: Sequence[Notice], dropped: int = 0) -> Message:
    """Return one message that tells all of it; ``dropped`` is how many more there were."""
    if len(notices) == 1 and not dropped:
        (notice,) = notices
        head = f"Task {_called(notice)} {_WORDS[notice.kind]}"
        return Message(head, _cut(_clean(notice.detail, keep_lines=True), DETAIL_CHARS_MAX))
    counts = Counter(notice.kind for notice in notices)
    parts = [f"{counts[kind]} {word}" for kind, word in _WORDS.items() if counts[kind]]
    if dropped:
        parts.append(f"{dropped} more events")
    head = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    order = {kind: at for at, kind in enumerate(_WORDS)}
    listed = sorted(notices, key=lambda notice: order[notice.kind])[:LISTED_MAX]
    lines = [f"{_WORDS[notice.kind]}: {_called(notice)}" for notice in listed]
    if len(notices) > len(listed):
        lines.append(f"and {len(notices) - len(listed)} others")
    return Message(f"{len(notices) + dropped} tasks: {head}", "\n".join(lines))


def cut_utf16(text: str, units_max: int) -> str:
    """Return the beginning of a text that has at most ``units_max`` UTF-16 units, as Telegram counts."""
    raw = text.encode("utf-16-le", "replace")
    if len(raw) <= 2 * units_max:
        return text
    return raw[: 2 * (units_max - 1)].decode("utf-16-le", "ignore") + "…"


def _called(notice: Notice) -> str:
    title = _cut(_clean(notice.title), TITLE_CHARS_MAX)
    return f"#{notice.task_id} {title}".rstrip()


def _clean(text: str, *, keep_lines: bool = False) -> str:
    """Return a text that cannot reorder or hide what stands around it."""
    if keep_lines:
        return "\n".join(_UNSAFE.sub(" ", line) for line in text.splitlines()).strip()
    return " ".join(_UNSAFE.sub(" ", text).split())


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
