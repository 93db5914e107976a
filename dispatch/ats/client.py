"""The synchronous client: one call after another over kept-alive connections.

Made for worker processes, where every call counts: a socket and the parser
that the service itself uses, a tenth of what the usual libraries cost. Each
thread has a connection of its own, and a process that was
forked opens new ones, so one Client may be shared by threads and children.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import httptools

from dispatch.ats import answers, protocol
from dispatch.errors import GatewayUnavailableError

if TYPE_CHECKING:
    from dispatch.ats.model import Actor

_CHUNK_BYTES: Final = 65_536
_HEADS_MAX: Final = 64


class _ClosedEarlyError(Exception):
    """A kept-alive connection turned out to be closed before any answer came."""


class _CutOffError(Exception):
    """The connection ended in the middle of an answer."""


class _Answer:
    """One answer as it arrives: callbacks of the parser, which is C."""

    def __init__(self, bytes_max: int) -> None:
        self.headers: dict[str, str] = {}
        self.complete = False
        self.keeps_alive = False
        self._bytes_max = bytes_max
        self._chunks: list[bytes] = []
        self._size = 0
        self._parser = httptools.HttpResponseParser(self)

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    @property
    def body(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").title()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        announced = self.headers.get("Content-Length", "")
        if announced.isdigit():
            self._check(int(announced))

    def on_body(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self._check(self._size)
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        # An interim answer (1xx) is followed by the real one.
        self.complete = self.status >= 200
        self.keeps_alive = bool(self._parser.should_keep_alive())

    def feed(self, data: bytes) -> None:
        """Take bytes; b"" is the end of the connection."""
        if not data:
            # Without a length the end of the connection is the end of the body.
            is_open_ended = self.headers and not {"Content-Length", "Transfer-Encoding"} & self.headers.keys()
            if not is_open_ended:
                raise _CutOffError
            self.complete = True
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as exc:
            # The parser wraps what our own callbacks raise.
            if isinstance(exc.__context__, GatewayUnavailableError):
                raise exc.__context__ from None
            raise

    def _check(self, size: int) -> None:
        if size > self._bytes_max:
            raise GatewayUnavailableError(f"The task service's answer is longer than {self._bytes_max} bytes.")


class _Kept:
    """One thread's connection, and the process that opened it."""

    def __init__(self, raw: socket.socket) -> None:
        self.used = False
        self._raw = raw
        self._pid = os.getpid()
        self._poll = select.poll()
        self._poll.register(raw, select.POLLIN)

    def is_usable(self) -> bool:
        """Say whether the connection is ours and quiet; an idle one that can be read was closed by the peer."""
        return self._pid == os.getpid() and not self._poll.poll(0)

    def close(self) -> None:
        self._raw.close()

    def __del__(self) -> None:
        # A thread that ended took its connection along without closing it.
        self._raw.close()

    def exchange(self, message: bytes, deadline: float, bytes_max: int) -> _Answer:
        """Send one request and read its whole answer, all within one deadline."""
        refused: ConnectionError | None = None
        self._arm(deadline)
        try:
            self._raw.sendall(message)
        except ConnectionError as exc:
            # A service may answer 413 and hang up before it has read a long body: its answer is worth a look.
            refused = exc
        answer = _Answer(bytes_max)
        try:
            while not answer.complete:
                self._arm(deadline)
                data = self._raw.recv(_CHUNK_BYTES)
                if not data and not answer.headers:
                    raise ConnectionResetError("the service closed the connection")
                answer.feed(data)
        except OSError:
            if refused is not None:
                raise refused from None
            raise
        return answer

    def _arm(self, deadline: float) -> None:
        """Give the next operation what is left of the time, or raise TimeoutError."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._raw.settimeout(left)


def _connect(where: protocol.Endpoint, tls: ssl.SSLContext | None, deadline: float) -> socket.socket:
    raw = socket.create_connection((where.host, where.port), timeout=max(deadline - time.monotonic(), 0.001))
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            return raw
        raw.settimeout(max(deadline - time.monotonic(), 0.001))
        return tls.wrap_socket(raw, server_hostname=where.host)
    except BaseException:
        raw.close()
        raise


class Client:
    """Calls a task service. ``send`` may be used by several threads at once.

    ``actor`` speaks unless a call names another. ``deadline_s`` bounds a whole
    call, connecting and reading included, however slowly the bytes trickle.
    """

    def __init__(
        self,
        where: protocol.Endpoint,
        actor: Actor,
        *,
        deadline_s: float = protocol.DEADLINE_S,
        answer_bytes_max: int = protocol.ANSWER_BYTES_MAX,
    ) -> None:
        self.endpoint = where
        self.actor = actor
        self._deadline_s = deadline_s
        self._answer_bytes_max = answer_bytes_max
        self._heads: dict[Actor, bytes] = {}
        self._tls = ssl.create_default_context() if self.endpoint.scheme == "https" else None
        self._local = threading.local()
        self._date: tuple[str, float] | None = None

    def send(self, request: protocol.Request, *, actor: Actor | None = None, deadline_s: float | None = None) -> Any:
        """Make one call and return the JSON of its answer.

        A kept-alive connection that was closed meanwhile is replaced without
        notice. Raises GatewayUnavailableError, AuthenticationError,
        UnknownTaskError, LeaseLostError or GatewayRejectedError; ValueError when
        the request's body is no JSON.
        """
        body = protocol.encode(request)
        deadline = time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)
        head = self._head_of(actor or self.actor)
        try:
            try:
                status, answer_headers, answer = self._exchange(request, head, body, deadline)
            except _ClosedEarlyError:
                status, answer_headers, answer = self._exchange(request, head, body, deadline)
        except (OSError, httptools.HttpParserError, ValueError, _ClosedEarlyError, _CutOffError) as exc:
            self.close()
            raise GatewayUnavailableError(
                f"The task service at {self.endpoint.base_url} gave no answer: {_cause(exc)}."
            ) from exc
        except BaseException:
            self.close()
            raise
        if date := answer_headers.get("Date"):
            self._date = (date, time.time())
        return answers.interpret(status, answer_headers, answer, leased=request.leased)

    def clock_offset_s(self) -> float:
        """Return the service's wall clock minus ours, in seconds, as of the last answer; 0.0 when unknown."""
        if self._date is None:
            return 0.0
        return answers.date_offset_s(*self._date)

    def close(self) -> None:
        """Close this thread's connection; the next call opens a new one."""
        kept: _Kept | None = getattr(self._local, "kept", None)
        if kept is not None:
            self._local.kept = None
            kept.close()

    def _head_of(self, actor: Actor) -> bytes:
        """Return the header lines of all calls of an actor; the protocol module has cleaned the values."""
        head = self._heads.get(actor)
        if head is None:
            found = {"Host": self.endpoint.authority, "Accept-Encoding": "identity"}
            found |= protocol.headers(self.endpoint, actor)
            head = "".join(f"{key}: {value}\r\n" for key, value in found.items()).encode()
            if len(self._heads) >= _HEADS_MAX:
                self._heads.clear()
            self._heads[actor] = head
        return head

    def _connection(self, deadline: float) -> _Kept:
        kept: _Kept | None = getattr(self._local, "kept", None)
        if kept is not None and not kept.is_usable():
            self.close()
            kept = None
        if kept is None:
            kept = self._local.kept = _Kept(_connect(self.endpoint, self._tls, deadline))
        return kept

    def _exchange(
        self, request: protocol.Request, head: bytes, body: bytes, deadline: float
    ) -> tuple[int, dict[str, str], bytes]:
        kept = self._connection(deadline)
        was_used, kept.used = kept.used, True
        line = f"{request.method} {protocol.target(request, self.endpoint)} HTTP/1.1\r\n"
        message = b"".join((line.encode(), head, b"Content-Length: %d\r\n\r\n" % len(body), body))
        try:
            answer = kept.exchange(message, deadline, self._answer_bytes_max)
        except ConnectionError as exc:
            self.close()
            if was_used and request.repeatable:
                raise _ClosedEarlyError from exc
            raise
        if not answer.keeps_alive:
            self.close()
        return answer.status, answer.headers, answer.body


def _cause(exc: BaseException) -> str:
    if isinstance(exc, _CutOffError):
        return "the answer was cut off"
    return "the answer is not HTTP" if isinstance(exc, httptools.HttpParserError) else answers.cause_of(exc)
