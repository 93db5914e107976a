"""Where the chunks go that a child writes: its log, the thread of its task, and back without progress lines.

What comes back is reported, as a response or as part of a reason, to whoever
reads the task: known secrets are stars in it, as they are on the thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dispatch.runner.progress import Progress, ProgressFilter
from dispatch.runner.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.runner.attempt_log import AttemptLog
    from dispatch.runner.live import LiveBuffer
    from dispatch.runner.output import Captured, HeadTail


class Streams:
    """The two output streams of one attempt. ``progress``: whether progress lines are looked for."""

    def __init__(
        self,
        *,
        progress: bool,
        redactor: Redactor | None = None,
        log: AttemptLog | None = None,
        live: LiveBuffer | None = None,
    ) -> None:
        self._redactor = redactor or Redactor(())
        self._log = log
        self._live = live
        self._filters = {"stdout": ProgressFilter(), "stderr": ProgressFilter()} if progress else {}

    def take(self, name: str, chunk: bytes) -> bytes:
        """Return what belongs to the stream's text of what was written."""
        if self._log is not None:
            self._log.write(chunk)
        if name not in self._filters:
            return chunk
        return self._told(name, self._filters[name].feed(chunk))

    def end(self, name: str, sink: HeadTail) -> Captured:
        """Give what was held back to where the stream was kept, and return what is reported of it."""
        if name in self._filters:
            sink.feed(self._told(name, self._filters[name].rest()))
        captured = sink.result(self._redactor.edges)
        return replace(captured, text=self._redactor.hide(captured.text))

    def _told(self, name: str, pieces: Sequence[bytes | Progress]) -> bytes:
        for piece in pieces:
            if self._live is None:
                break
            if isinstance(piece, Progress):
                self._live.tell(piece)
            else:
                self._live.feed(name, piece)
        return b"".join(piece for piece in pieces if not isinstance(piece, Progress))

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
