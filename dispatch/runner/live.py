"""What a running attempt writes, on its task's thread while it runs.

The main thread puts output into a bounded buffer and never waits; a thread of
its own, with a connection of its own, says it at intervals. While the service
is away the buffer fills; what does not fit is lost here and stands in the
attempt's log on its host.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dispatch.errors import GatewayError, GatewayRejectedError, LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.gateway import AttemptRef, TaskGateway
    from dispatch.runner.progress import Progress
    from dispatch.runner.redaction import Redactor

FIRST_S: Final = 0.5
"""From the start of an attempt to its first lines; a shorter one says nothing but its result."""
MESSAGE_BYTES_MAX: Final = 7_600
"""What one message shows at most; the service takes 8,000 characters."""
ATTEMPT_BYTES_MAX: Final = 1_048_576
"""What is shown of one attempt at most, so that threads stay readable; progress goes on."""
BUFFER_BYTES_MAX: Final = 65_536
_PARTIAL_S: Final = 1.0
"""How long a line without its end (a prompt, dots) waits."""
_PAUSES_MAX: Final = 5
"""How many intervals lie between two tries at most while the service does not answer."""
_CATCH_UP: Final = 0.25
"""The part of the interval between two messages while what gathered in an outage is said."""


class LiveBuffer:
    """The output of one attempt that nobody was told yet. Fed by the main thread, drained by another."""

    def __init__(
        self,
        redactor: Redactor,
        *,
        where: str,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redactor = redactor
        self._where = where
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._lines = bytearray()
        self._partial = {"stdout": bytearray(), "stderr": bytearray()}
        self._partial_since: dict[str, float] = {}
        self._skips = {"stdout": False, "stderr": False}
        self._left_out = 0
        self._shown = 0
        self._behind = 0
        self._progress: Progress | None = None

    def feed(self, name: str, chunk: bytes) -> None:
        """Take what a stream brought. Lines are kept whole, so that no secret in one is cut in two."""
        with self._lock:
            end = chunk.rfind(b"\n") + 1
            partial = self._partial[name]
            if end:
                if self._skips[name]:
                    self._left_out += chunk.index(b"\n") + 1
                    self._lines += chunk[chunk.index(b"\n") + 1 : end]
                    self._skips[name] = False
                else:
                    self._lines += partial + chunk[:end]
                partial.clear()
                self._partial_since.pop(name, None)
            if end < len(chunk):
                self._begin_partial(name, chunk[end:])
            self._bound()
        self._changed()

    def _begin_partial(self, name: str, rest: bytes) -> None:
        partial = self._partial[name]
        if self._skips[name] or len(partial) + len(rest) > BUFFER_BYTES_MAX:
            self._left_out += len(partial) + len(rest)
            partial.clear()
            self._skips[name] = True
            return
        partial += rest
        self._partial_since.setdefault(name, self._clock())

    def _bound(self) -> None:
        if len(self._lines) > BUFFER_BYTES_MAX:
            cut = self._lines.find(b"\n", len(self._lines) - BUFFER_BYTES_MAX // 2) + 1
            cut = cut or len(self._lines)
            del self._lines[:cut]
            self._left_out += cut
            self._behind = max(0, self._behind - cut)

    def tell(self, progress: Progress) -> None:
        """Take how far the attempt is."""
        with self._lock:
            self._progress = progress
            self._lines += f"{progress}\n".encode("utf-8", "replace")
            self._bound()
        self._changed()

    def pending(self) -> bool:
        """Say whether something waits to be told, or will when it has waited long enough."""
        with self._lock:
            return bool(self._lines) or bool(self._partial_since)

    def fall_behind(self) -> None:
        """Have all that is here said, a message's worth at a time: nobody took anything for a while."""
        with self._lock:
            self._behind = len(self._lines)

    @property
    def is_behind(self) -> bool:
        """Whether some of that is still to be said."""
        return self._behind > 0

    def drain(self) -> tuple[str, dict[str, Any] | None]:
        """Return the text of the next message, "" for none, and its facts. What it holds counts as told.

        Of more than fits it is the newest, and the oldest for who fell behind.
        """
        with self._lock:
            data = bytes(self._take()) + (b"" if self._behind else self._ripe())
            left_out, self._left_out = self._left_out, 0
            progress = self._progress
        data = self._redactor.redact(data)
        if self._shown >= ATTEMPT_BYTES_MAX:
            last = str(progress) if progress is not None and str(progress).encode() in data else ""
            return last, _facts(progress, self._redactor)
        if len(data) > MESSAGE_BYTES_MAX:
            cut = len(data) - MESSAGE_BYTES_MAX
            cut = data.find(b"\n", cut, len(data) - 1) + 1 or cut
            data, left_out = data[cut:], left_out + cut
        self._shown += len(data)
        text = data.decode("utf-8", "replace").replace("\0", "")
        if self._shown >= ATTEMPT_BYTES_MAX:
            text = text.rstrip("\n") + (
                f"\n[... this attempt has written {ATTEMPT_BYTES_MAX >> 20} MiB here, which is all that a thread shows."
                f" It runs on, and its progress is still shown; {self._where} ...]"
            )
        if left_out:
            text = f"[... {left_out} bytes are left out here; {self._where} ...]\n{text}"
        return text.rstrip("\n"), _facts(progress, self._redactor)

    def _take(self) -> bytearray:
        """Take the lines for one message: all of them, or of somebody behind the oldest, at the end of a line."""
        end = len(self._lines)
        if self._behind and end > MESSAGE_BYTES_MAX:
            end = self._lines.rfind(b"\n", 0, MESSAGE_BYTES_MAX) + 1 or self._lines.find(b"\n") + 1 or end
        taken = self._lines[:end]
        del self._lines[:end]
        self._behind = max(0, self._behind - end)
        return taken

    def lost(self, text: str) -> None:
        """Count a message that nobody took."""
        with self._lock:
            self._left_out += len(text.encode())

    def _ripe(self) -> bytes:
        """Take what can be shown of lines that wait for their end since long."""
        now, found = self._clock(), b""
        for name, since in list(self._partial_since.items()):
            if now - since < _PARTIAL_S:
                continue
            partial = self._partial[name]
            safe = self._redactor.safe_length(bytes(partial))
            safe -= _cut_character(partial[:safe])
            found += bytes(partial[:safe])
            del partial[:safe]
            del self._partial_since[name]
            if partial:
                self._partial_since[name] = now
        return found


def _cut_character(data: bytes | bytearray) -> int:
    """Return how many bytes at the end belong to a character whose rest is still to come."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < length else 0
        if byte < 0x80:
            return 0
    return 0


def _facts(progress: Progress | None, redactor: Redactor) -> dict[str, Any] | None:
    if progress is None:
        return None
    text = redactor.redact(progress.text.encode("utf-8", "replace")).decode("utf-8", "replace")
    return {"progress": progress.percent, "text": text}


@dataclass(slots=True)
class _Watch:
    ref: AttemptRef
    buffer: LiveBuffer
    next_at: float
    unsaid: tuple[str, dict[str, Any] | None] | None = None
    """A message that was tried and got no answer."""
    last: str = ""
    """The id of the last message that was taken."""
    failures: int = 0
    is_told: bool = False


class LiveOutput:
    """The thread that says it; there is one per process, from the first attempt on that lives longer than a moment."""

    def __init__(self, gateway: TaskGateway, *, every_s: float, log: Any) -> None:
        self._gateway = gateway
        self._every_s = every_s
        self._log = log
        self._watch: _Watch | None = None
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    def changed(self) -> None:
        """Say that there is something in the buffer."""
        self._news.set()

    def watch(self, ref: AttemptRef, buffer: LiveBuffer) -> None:
        """Say what comes into this buffer, until ``unwatch``."""
        self._watch = _Watch(ref, buffer, time.monotonic() + FIRST_S)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="live-output", daemon=True)
            self._thread.start()
        self._news.set()

    def unwatch(self) -> None:
        """Say no more. A message under way may still arrive."""
        self._watch = None

    def _run(self) -> None:
        while True:
            watch = self._watch
            if watch is None or not (watch.unsaid or watch.buffer.pending()):
                self._news.wait()
                self._news.clear()
                continue
            left_s = watch.next_at - time.monotonic()
            if left_s > 0:
                time.sleep(left_s)
                continue
            try:
                self._say(watch)
            except Exception:  # noqa: BLE001
                # A bug here costs log lines, not attempts.
                self._log.exception("live_output_error", task=watch.ref.task_id, token=watch.ref.token)
                self._watch = None

    def _say(self, watch: _Watch) -> None:
        again = watch.unsaid is not None
        text, facts = watch.unsaid or watch.buffer.drain()
        watch.next_at = time.monotonic() + self._every_s * (_CATCH_UP if watch.buffer.is_behind else 1.0)
        if not text or self._watch is not watch:
            return
        try:
            # No answer is not "not taken".
            if not (again and self._gateway.was_said(watch.ref, text, after=watch.last)):
                watch.last = self._gateway.say(watch.ref, text, facts)
        except LeaseLostError:
            if self._watch is watch:
                self._watch = None
        except GatewayError as exc:
            self._not_taken(watch, exc, text, facts)
        else:
            watch.failures, watch.unsaid = 0, None

    def _not_taken(self, watch: _Watch, exc: GatewayError, text: str, facts: dict[str, Any] | None) -> None:
        """Keep the message, unless the service refuses it, and pause."""
        watch.failures += 1
        refused = isinstance(exc, GatewayRejectedError)
        if refused:
            watch.unsaid = None
            watch.buffer.lost(text)
        else:
            watch.unsaid = text, facts
            watch.buffer.fall_behind()
        watch.next_at = time.monotonic() + self._every_s * min(watch.failures, _PAUSES_MAX)
        if not watch.is_told:
            watch.is_told = True
            self._log.warning(
                "live_output_delayed", task=watch.ref.task_id, token=watch.ref.token, refused=refused, error=str(exc)
            )
