"""Progress lines: ``::progress 40 Fetching`` on a line of its own is taken out of what a child writes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

PREFIX: Final = b"::progress "
LINE_BYTES_MAX: Final = 1_024
TEXT_CHARS_MAX: Final = 200
_LINE: Final = re.compile(rb"::progress (\d{1,3})(?:[ \t]+([^\r\n]*))?[ \t]*\r?\n?")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt is, as its command says: percent, and a few words."""

    percent: int
    text: str

    def __str__(self) -> str:
        return f"[{self.percent} %] {self.text}".rstrip()


def parse(line: bytes) -> Progress | None:
    """Read a line; None when it is no progress line."""
    found = _LINE.fullmatch(line)
    if found is None or int(found[1]) > 100:
        return None
    text = (found[2] or b"").decode("utf-8", "replace").replace("\0", "").strip()
    return Progress(int(found[1]), text[:TEXT_CHARS_MAX])


class ProgressFilter:
    """Takes the chunks of one stream and gives them back without progress lines.

    Only the beginning of a line that may become a progress line is held back,
    at most LINE_BYTES_MAX bytes of it.
    """

    def __init__(self) -> None:
        self._held = b""
        self._in_line = False

    def feed(self, chunk: bytes) -> list[bytes | Progress]:
        """Return what came, in its order: what is no progress as it is, and the progress."""
        data = self._held + chunk
        self._held = b""
        tail = data[data.rfind(b"\n") + 1 :]
        is_whole = len(tail) == len(data)
        if PREFIX not in data and not (tail and self._may_be(tail, at_start=not (is_whole and self._in_line))):
            self._in_line = bool(tail)
            return [data] if data else []
        found: list[bytes | Progress] = []
        kept: list[bytes] = []
        for line in _lines(data):
            at_start, self._in_line = not self._in_line, not line.endswith(b"\n")
            progress = parse(line) if at_start and not self._in_line else None
            if progress is not None:
                found += [b"".join(kept), progress] if kept else [progress]
                kept = []
            elif at_start and self._in_line and self._may_be(line, at_start=True):
                self._held, self._in_line = line, False
            else:
                kept.append(line)
        return [*found, b"".join(kept)] if kept else found

    def rest(self) -> list[bytes | Progress]:
        """Return what was held back, at the end of the stream."""
        held, self._held = self._held, b""
        progress = parse(held) if held else None
        return [progress] if progress is not None else [held] if held else []

    @staticmethod
    def _may_be(line: bytes, *, at_start: bool) -> bool:
        return at_start and len(line) < LINE_BYTES_MAX and (PREFIX.startswith(line) or line.startswith(PREFIX))


def _lines(data: bytes) -> list[bytes]:
    """Split after line feeds only: a carriage return alone ends no line of a pipe."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
