"""What an attempt is told of a task that was done and sent back: the note, the earlier result, the talk. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.prompt import REVIEWER_NOTE
from dispatch.core.results import cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TAG: Final = "bounce"
"""Marks the message that sent a task back."""
REMARK: Final = "review"
"""Marks what a reviewer noted without deciding."""
ANSWER_BYTES_MAX: Final = 32_768
"""All of it together, as JSON."""
_NOTE_BYTES_MAX: Final = 12_288
_PART_BYTES_MAX: Final = 9_216


@dataclass(frozen=True, slots=True)
class Review:
    """``messages`` are ``{"from", "at", "text"}``, oldest first."""

    note: str = field(default="", repr=False)
    result: str = field(default="", repr=False)
    messages: tuple[dict[str, str], ...] = field(default=(), repr=False)

    def blocks(self) -> dict[str, str]:
        """Return it as named blocks of a prompt."""
        talk = "\n\n".join(f"{one['from']}, {one['at']}:\n{one['text']}" for one in self.messages)
        return {"earlier-result": self.result, "thread": talk, REVIEWER_NOTE: self.note}

    def as_json(self) -> dict[str, Any]:
        """Return it for executors that read the task as JSON."""
        return {"note": self.note, "result": self.result, "messages": list(self.messages)}


def bounded(note: Any, result: str, messages: Iterable[Mapping[str, Any]]) -> Review:
    """Return the review within its bounds: of the talk the newest, of texts the beginning."""
    kept: list[dict[str, str]] = []
    room = _PART_BYTES_MAX
    for message in reversed(list(messages)):
        one = {name: str(message.get(name) or "") for name in ("from", "at", "text")}
        one["from"] = " ".join(one["from"].split())[:128]
        one["at"] = one["at"][:40]
        size = sum(len(value.encode("utf-8", "replace")) for value in one.values()) + 32
        if size > room:
            break
        room -= size
        kept.append(one)
    whole = cut(result, _PART_BYTES_MAX)
    if whole != result:
        whole += "\n[... the rest is left out ...]"
    said = note if isinstance(note, str) else ""
    return Review(cut(said, _NOTE_BYTES_MAX), whole, tuple(reversed(kept)))
