"""The synchronous client: one call after another over kept-alive connections.

Made for worker processes: http.client costs a third of what the usual
libraries do. Each thread has a connection of its own, and a process that was
forked opens new ones, so one Client may be shared by threads and children.
"""

from __future__ import annotations

import http.client
import io
import os
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats import answers, protocol
from dispatch.errors import GatewayUnavailableError

if TYPE_CHECKING:
    from dispatch.ats.model import Actor

_CHUNK_BYTES: Final = 65_536
_HEADS_MAX: Final = 64


class _ClosedEarlyError(Exception):
    """A kept-alive connection turned out to be closed before any answer came."""


class _Bytes(io.RawIOBase):
    """The incoming side of a socket, with one deadline for all reads of one answer together."""

    def __init__(self, owner: _Socket) -> None:
        self._owner = owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._owner.arm()
        return self._owner.inner.recv_into(buffer)


class _Socket:
    """What http.client needs of a socket, bounded by a deadline instead of a time per read."""

    def __init__(self, inner: socket.socket) -> None:
        self.inner = inner
        self.deadline = 0.0

    def arm(self) -> None:
        """Give the next operation what is left of the time, or raise TimeoutError."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.inner.settimeout(left)

    def sendall(self, data: Any) -> None:
        self.arm()
        self.inner.sendall(data)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Bytes(self), _CHUNK_BYTES)

    def close(self) -> None:
        self.inner.close()


class _Kept:
    """One thread's connection, and the process that opened it."""

    def __init__(self, raw: socket.socket) -> None:
        self.used = False
        self.socket = _Socket(raw)
        self._pid = os.getpid()
        self._poll = select.poll()
        self._poll.register(raw, select.POLLIN)

    def is_usable(self) -> bool:
        """Say whether the connection is ours and quiet; an idle one that can be read was closed by the peer."""
        return self._pid == os.getpid() and not self._poll.poll(0)

    def close(self) -> None:
        self.socket.close()

    def __del__(self) -> None:
        # A thread that ended took its connection along without closing it.
        self.socket.close()

    def exchange(self, message: bytes, method: str) -> http.client.HTTPResponse:
        """Send one request and read the head of its answer."""
        refused: ConnectionError | None = None
        try:
            self.socket.sendall(message)
        except ConnectionError as exc:
            # A service may answer 413 and hang up before it has read a long body: its answer is worth a look.
            refused = exc
        answer = http.client.HTTPResponse(self.socket, method=method)  # type: ignore[arg-type]
        try:
            answer.begin()
        except (OSError, http.client.HTTPException):
            answer.close()
            if refused is not None:
                raise refused from None
            raise
        return answer


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
        except (OSError, http.client.HTTPException, ValueError, _ClosedEarlyError) as exc:
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
        kept.socket.deadline = deadline
        return kept

    def _exchange(
        self, request: protocol.Request, head: bytes, body: bytes, deadline: float
    ) -> tuple[int, dict[str, str], bytes]:
        kept = self._connection(deadline)
        was_used, kept.used = kept.used, True
        line = f"{request.method} {protocol.target(request, self.endpoint)} HTTP/1.1\r\n"
        message = b"".join((line.encode(), head, b"Content-Length: %d\r\n\r\n" % len(body), body))
        try:
            answer = kept.exchange(message, request.method)
        except ConnectionError as exc:
            self.close()
            if was_used and request.repeatable:
                raise _ClosedEarlyError from exc
            raise
        with answer:
            content = self._read(answer)
        if answer.will_close:
            self.close()
        return answer.status, dict(answer.headers.items()), content

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        """Read the whole body, or raise when it is cut off or too long."""
        length = answer.length
        if length is not None and length > self._answer_bytes_max:
            raise GatewayUnavailableError(f"The task service's answer is too long ({length} bytes).")
        content = answer.read(self._answer_bytes_max + 1)
        if len(content) > self._answer_bytes_max:
            raise GatewayUnavailableError(f"The task service's answer is longer than {self._answer_bytes_max} bytes.")
        if length is not None and len(content) < length:
            raise http.client.IncompleteRead(content, length - len(content))
        return content


def _cause(exc: BaseException) -> str:
    return "the answer was cut off" if isinstance(exc, http.client.IncompleteRead) else answers.cause_of(exc)
