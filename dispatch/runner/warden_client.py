"""Talk to the warden from a pool child, and start and replace it from the worker's main process."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dispatch.ats.gateway import AttemptRef
    from dispatch.ats.model import Actor

MESSAGE_BYTES_MAX: Final = 8_192


class WardenClient:
    """One connection from a pool child to its host's warden; messages are sent and not answered.

    ``address`` is what ``WardenProcess.address`` returned. Losing the warden
    never stops an attempt: the worker main replaces it, and the next use
    connects again and says what is running. ``begin`` and ``end`` belong to the
    main thread, ``extend`` may come from another.
    """

    def __init__(self, address: bytes) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._begun: dict[str, Any] | None = None
        self._count = 0

    def fileno(self) -> int:
        """Return what to poll for messages of the warden, -1 while there is no connection."""
        return self._socket.fileno() if self._socket is not None else -1

    def begin(self, ref: AttemptRef, *, tag: str, mark: int, deadline: float, actor: Actor) -> bool:
        """Say that an attempt is about to start; call it before anything is spawned, or again with a later deadline.

        ``deadline`` is a reading of the boot clock. Returns False when no warden
        could be reached; the attempt may run all the same.
        """
        with self._lock:
            self._count += 1
            self._begun = {
                "op": "begin",
                "number": self._count,
                "task": ref.task_id,
                "attempt": ref.attempt,
                "token": ref.token,
                "tag": tag,
                "mark": mark,
                "deadline": deadline,
                "actor": {"type": actor.type, "id": actor.id, "name": actor.name},
            }
            return self._send(self._begun)

    def extend(self, deadline: float) -> bool:
        """Move the deadline of the running attempt."""
        with self._lock:
            if self._begun is None:
                return False
            self._begun["deadline"] = deadline
            return self._send({"op": "extend", "token": self._begun["token"], "deadline": deadline})

    def end(self) -> None:
        """Say that the attempt is over and reported: nothing is left to kill or to release."""
        with self._lock:
            begun, self._begun = self._begun, None
            if begun is not None:
                self._send({"op": "end", "token": begun["token"]})

    def read(self) -> list[dict[str, Any]]:
        """Return what the warden sent about the running attempt, without blocking; connects again when it is gone."""
        messages: list[dict[str, Any]] = []
        with self._lock:
            while self._socket is not None:
                try:
                    data = self._socket.recv(MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError:
                    data = b""
                if not data:
                    self._reconnect()
                    break
                with contextlib.suppress(ValueError):
                    message = json.loads(data)
                    # A word about what is over must not hit the next, which may be the same attempt, begun again.
                    if self._begun is not None and _names(message) == _names(self._begun):
                        messages.append(message)
        return messages

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _send(self, message: dict[str, Any]) -> bool:
        if self._socket is None:
            return self._reconnect()
        try:
            self._socket.send(_packed(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            return self._reconnect()
        return True

    def _reconnect(self) -> bool:
        """Connect, and say what is running now. The listening socket outlives every single warden."""
        self._drop()
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            fresh.connect(self._address)
            if self._begun is not None:
                fresh.send(_packed(self._begun), socket.MSG_NOSIGNAL)
        except OSError:
            fresh.close()
            return False
        self._socket = fresh
        return True

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _names(message: Any) -> tuple[Any, ...] | None:
    return tuple(map(message.get, ("task", "token", "number"))) if isinstance(message, dict) else None


def _packed(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()
