"""What a child writes, kept within bounds: the first quarter of the cap and the newest of the rest."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_REPLACEMENT: Final = "\ufffd"


Edges = Callable[[bytes, bytes], tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Captured:
    """What became of one stream. ``total_bytes`` counts everything that was written."""

    text: str
    total_bytes: int
    truncated: bool
    binary: bool
    """NUL bytes were removed or bytes that are no UTF-8 replaced."""


EMPTY: Final = Captured("", 0, truncated=False, binary=False)


class HeadTail:
    """Takes bytes for ever and keeps ``bytes_max`` of them.

    Memory is at most twice the cap and one chunk. Nothing is decoded before the
    end, so a character that was split between two chunks is whole again.
    """

    def __init__(self, bytes_max: int) -> None:
        self._head_max = bytes_max // 4
        self._tail_max = bytes_max - self._head_max
        self._head = bytearray()
        self._tail = bytearray()
        self.total_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.total_bytes += len(chunk)
        room = self._head_max - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if chunk:
            self._tail += chunk
            if len(self._tail) > 2 * self._tail_max:
                del self._tail[: -self._tail_max]

    def result(self, edges: Edges | None = None) -> Captured:
        """Return what was kept as text; a sentence stands where bytes were left out.

        ``edges`` takes what stands before and behind that place and returns what may be shown of both.
        """
        if self.total_bytes == 0:
            return EMPTY
        left_out = self.total_bytes - len(self._head) - self._tail_max
        if left_out <= 0:
            raw = bytes(self._head + self._tail)
            text = raw.decode("utf-8", "replace")
        else:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            head, tail = bytes(self._head), bytes(self._tail[-self._tail_max :])
            if edges is not None:
                head, tail = edges(head, tail)
                left_out = self.total_bytes - len(head) - len(tail)
            first = decoder.decode(head)
            skip = next((i for i in range(min(4, len(tail))) if tail[i] & 0xC0 != 0x80), 0)
            left_out += skip + len(decoder.getstate()[0])
            marker = f"\n[... {left_out} bytes of output are left out here ...]\n"
            raw = head + tail
            text = first + marker + tail[skip:].decode("utf-8", "replace")
        invalid = _REPLACEMENT in text and text.count(_REPLACEMENT) > raw.count(_REPLACEMENT.encode())
        has_nul = "\0" in text
        if has_nul:
            text = text.replace("\0", "")
        return Captured(text, self.total_bytes, truncated=left_out > 0, binary=invalid or has_nul)
