"""Who calls, and whether the service listens to them at all: headers and queries of the first moment."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from dispatch.ats.model import Actor
from dispatch.errors import ForbiddenError, InvalidInputError, TaskError
from dispatch.service import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Send

ACTOR_TYPES: Final = ("agent", "human", "system")
_CHARS_MAX: Final = 255
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_LOOPBACK: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|\[?::1\]?", re.IGNORECASE | re.ASCII)


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's own."""
    return _LOOPBACK.fullmatch(host) is not None


def _decode(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    if _ESCAPE.search(text):
        text = unquote(text, errors="replace")
    return text.strip()


def actor_of(kind: str, ident: str, name: str) -> Actor:
    """Return the actor, unnamed parts being anonymous. Raises InvalidInputError."""
    kind = kind or "agent"
    ident = ident or "anonymous"
    name = name or ident
    if kind not in ACTOR_TYPES:
        raise InvalidInputError(f"The actor type must be one of {', '.join(ACTOR_TYPES)}, not {kind[:40]!r}.")
    if len(ident) > _CHARS_MAX or not ident.isprintable():
        raise InvalidInputError(f"The actor id must be at most {_CHARS_MAX} printable characters.")
    shown = "".join([char if char.isprintable() else " " for char in name[:_CHARS_MAX]])
    return Actor(kind, ident, shown)


@lru_cache(maxsize=512)
def _actor(kind: bytes, ident: bytes, name: bytes) -> Actor:
    return actor_of(_decode(kind), _decode(ident), _decode(name))


@lru_cache(maxsize=128)
def _check_origin(host: bytes, origin: bytes) -> None:
    name = host.decode("latin-1")
    name = name if name.endswith("]") or (name.count(":") > 1 and "]" not in name) else name.rsplit(":", 1)[0]
    if host and not is_loopback(name):
        raise ForbiddenError(f"The Host {name[:80]!r} is not this machine's own; call the service as localhost.")
    try:
        site = urlsplit(origin.decode("latin-1")).hostname or ""
    except ValueError:
        site = ""
    if origin and not is_loopback(site):
        raise ForbiddenError("Requests that a web page of another site makes are not served.")


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[Actor, int | None]:
    """Return who calls and the announced length of the body.

    Raises ForbiddenError for a foreign Host or Origin (DNS rebinding, a web
    page calling the loopback), InvalidInputError for a malformed actor.
    """
    host = origin = kind = ident = name = b""
    length: int | None = None
    for key, value in headers:
        if key == b"host":
            host = value
        elif key == b"origin":
            origin = value
        elif key == b"content-length":
            length = int(value) if value.isdigit() else None
        elif key == b"x-actor-type":
            kind = value
        elif key == b"x-actor-id":
            ident = value
        elif key == b"x-actor-name":
            name = value
    _check_origin(host, origin)
    return _actor(kind, ident, name), length


async def refuse_socket(send: Send, error: TaskError) -> None:
    """Answer a WebSocket handshake with a refusal in JSON."""
    body = wire.dumps(error.as_body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
