"""From spans to the collector, in a thread: batched, bounded, and lost where that does not work.

Traces are for looking at: nothing waits for them but the end of a process, for
a moment. A collector that is away, or slower than what comes, is told of once.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from dispatch import __version__
from dispatch.traces.encoding import encode
from dispatch.traces.sending import NotTakenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.core.spans import Span
    from dispatch.traces.sending import Sender

QUEUE_MAX: Final = 4_096
_BATCH_MAX: Final = 512
_GATHER_S: Final = 1.0
"""How long the first span of a batch waits for others."""


def resource_of(process: str, environ: Mapping[str, str]) -> dict[str, str | int]:
    """Return who sends, with what OTEL_RESOURCE_ATTRIBUTES adds to it; of that what is malformed is left out."""
    pairs = [part.partition("=") for part in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")]
    return {
        **{name.strip(): unquote(value.strip()) for name, _, value in pairs if name.strip() and value.strip()},
        "service.name": f"dispatch-{process}",
        "service.namespace": "dispatch",
        "service.version": __version__,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }


class Exporter:
    """Takes the spans of one process, from any thread, and sends them in the background."""

    def __init__(self, process: str, sender: Sender, log: Any) -> None:
        self._resource = resource_of(process, os.environ)
        self._sender = sender
        self._log = log
        self._queue: deque[Span] = deque()
        self._news = threading.Event()
        self._hurry = threading.Event()
        """A batch is full, or the process ends."""
        self._is_closing = False
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def add(self, span: Span) -> None:
        """Queue a span, or lose it where more come than are taken."""
        if len(self._queue) >= QUEUE_MAX:
            self._lose(1, "more spans came than it took")
            return
        self._queue.append(span)
        self._news.set()
        if len(self._queue) >= _BATCH_MAX:
            self._hurry.set()

    def close(self, patience_s: float) -> None:
        """Send what is left, for so long at most."""
        self._is_closing = True
        self._news.set()
        self._hurry.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while not self._is_closing or self._queue:
            self._news.wait()
            self._hurry.wait(_GATHER_S)
            self._news.clear()
            if not self._is_closing:
                self._hurry.clear()
            while self._queue:
                self._send([self._queue.popleft() for _ in range(min(_BATCH_MAX, len(self._queue)))])
        self._sender.close()

    def _send(self, spans: list[Span]) -> None:
        try:
            self._sender.send(encode(spans, self._resource))
        except NotTakenError as exc:
            self._lose(len(spans), str(exc))
        except Exception:  # noqa: BLE001 - a mistake in one batch must not end all traces of a process
            if not self._lost:
                self._log.exception("traces_failed")
            self._lost += len(spans)
        else:
            if self._lost:
                self._log.info("traces_sent_again", lost=self._lost)
                self._lost = 0

    def _lose(self, count: int, why: str) -> None:
        if not self._lost:
            self._log.warning("traces_not_sent", reason=why)
        self._lost += count
