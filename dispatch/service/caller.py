"""Who calls, and whether the service listens to them at all: what every request shows first."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from dispatch.ats.model import Actor
from dispatch.errors import ForbiddenError, InvalidInputError, OverloadedError, TaskError, UnauthorizedError
from dispatch.log import get_logger
from dispatch.service import keys, wire
from dispatch.service.access import Caller

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from starlette.types import Send

    from dispatch.service.keys import Key
    from dispatch.service.store import Store

ACTOR_TYPES: Final = ("agent", "human", "system")
CHALLENGE: Final = (b"www-authenticate", b"Bearer")
"""Goes with every 401."""
_CHARS_MAX: Final = 255
_TWICE: Final = b"twice"
_REFUSALS_LOGGED_MAX: Final = 10
_REFUSALS_EVERY_S: Final = 10.0
_log: Final = get_logger("service")
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
    return Actor(kind, ident, _shown(name))


def _shown(name: str) -> str:
    return "".join([char if char.isprintable() else " " for char in name[:_CHARS_MAX]])


@lru_cache(maxsize=512)
def _actor(kind: bytes, ident: bytes, name: bytes) -> Actor:
    return actor_of(_decode(kind), _decode(ident), _decode(name))


@dataclass(slots=True)
class Heads:
    """The headers that say who calls, from where, and how much comes."""

    host: bytes = b""
    origin: bytes = b""
    authorization: bytes = b""
    actor_type: bytes = b""
    actor_id: bytes = b""
    actor_name: bytes = b""
    length: int | None = None
    """The announced length of the body, in bytes."""


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> Heads:
    """Pick out what matters. Names are lower case, as ASGI has them."""
    found = Heads()
    for key, value in headers:
        if key == b"host":
            found.host = value
        elif key == b"origin":
            found.origin = value
        elif key == b"authorization":
            # Two of them are one too many: who stands in front may have looked at the other one.
            found.authorization = _TWICE if found.authorization else value
        elif key == b"content-length":
            found.length = int(value) if value.isdigit() else None
        elif key == b"x-actor-type":
            found.actor_type = value
        elif key == b"x-actor-id":
            found.actor_id = value
        elif key == b"x-actor-name":
            found.actor_name = value
    return found


async def authenticate(
    store: Store, heads: Heads, peer: tuple[str, int] | None = None, origins: AbstractSet[str] = frozenset()
) -> Caller:
    """Return who calls: for REST, the WebSocket's handshake and MCP alike.

    Without API keys everybody is served who calls this machine by a loopback
    name, as whoever they say they are. As soon as one key was ever made, every
    request needs a good one, which says who they are. ``peer`` is the other
    end's address, for the log; ``origins`` are the web sites that may call
    beside those of this host.

    Raises ForbiddenError for a foreign Host or Origin, UnauthorizedError,
    InvalidInputError for a malformed actor, OverloadedError.
    """
    found = _bearer(heads.authorization)
    parts = keys.split(found) if found is not None else None
    key = await store.key(parts[0]) if parts is not None else None
    if key is None and not await store.has_keys():
        _check_loopback(heads.host, heads.origin)
        return Caller(_actor(heads.actor_type, heads.actor_id, heads.actor_name))
    _check_origin(heads.host, heads.origin, origins)
    if parts is None or not keys.vouches(key, parts[1], store.clock.now_ms()) or key is None:
        _refusals.note(parts[0] if parts is not None else "", peer[0] if peer else "")
        if found is None:
            raise UnauthorizedError("This request carries no API key.")
        raise UnauthorizedError("This API key is not accepted: it is wrong, expired or revoked.")
    return _keyed(key, heads.actor_id, heads.actor_name)


async def check_open(store: Store, heads: Heads, origins: AbstractSet[str] = frozenset()) -> None:
    """Check the headers of a call for which nobody needs a key. Raises as ``authenticate``, but for keys.

    Such a call says how the service is, so it is answered while the database is away.
    """
    try:
        has_keys = await store.has_keys()
    except OverloadedError:
        has_keys = True
    if has_keys:
        _check_origin(heads.host, heads.origin, origins)
    else:
        _check_loopback(heads.host, heads.origin)
        _actor(heads.actor_type, heads.actor_id, heads.actor_name)


async def is_still_good(store: Store, caller: Caller) -> bool:
    """Say whether a caller who was let in would be let in now. Raises OverloadedError."""
    if not caller.is_keyed:
        return not await store.has_keys()
    key = await store.key(caller.key_id)
    return key is not None and key.is_live(store.clock.now_ms())


def _bearer(value: bytes) -> str | None:
    """Return what stands in an Authorization header as bearer token, or None where there is none."""
    if value is _TWICE:
        return ""
    scheme, _, token = value[:_CHARS_MAX].partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" and token.strip() else None


@lru_cache(maxsize=1024)
def _keyed(key: Key, ident: bytes, name: bytes) -> Caller:
    claimed = _decode(ident)
    if keys.covers(key.actor_id, claimed):
        actor_of("", claimed, "")  # raises
    else:
        claimed = ""
    return keys.caller_of(key, claimed, _shown(_decode(name)))


@lru_cache(maxsize=128)
def _check_loopback(host: bytes, origin: bytes) -> None:
    name = _host_name(host)
    if host and not is_loopback(name):
        raise ForbiddenError(f"The Host {name[:80]!r} is not this machine's own; call the service as localhost.")
    if origin and not is_loopback(_site(origin)):
        raise ForbiddenError("Requests that a web page of another site makes are not served.")


def _check_origin(host: bytes, origin: bytes, origins: AbstractSet[str]) -> None:
    # Any Host will do: a key is no ambient authority, which is what a rebound name would borrow.
    if not origin or origin.decode("latin-1").lower() in origins:
        return
    site = _site(origin)
    if not is_loopback(site) and (not site or site != _host_name(host).strip("[]").lower()):
        raise ForbiddenError(
            "Requests that a web page of another site makes are not served.",
            next_step="Call from a page of this host, or have the operator list it in DISPATCH_ALLOWED_ORIGINS.",
        )


def _host_name(host: bytes) -> str:
    name = host.decode("latin-1")
    return name if name.endswith("]") or (name.count(":") > 1 and "]" not in name) else name.rsplit(":", 1)[0]


def _site(origin: bytes) -> str:
    try:
        return urlsplit(origin.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


class _Refusals:
    """Logs refused keys, so many in a while: a flood of guesses must not become a flood of lines."""

    def __init__(self) -> None:
        self._until = 0.0
        self._left = 0
        self._unlogged = 0

    def note(self, key_id: str, peer: str) -> None:
        """Note one. ``key_id`` is the public half of what looked like a key, or ""."""
        now = time.monotonic()
        if now >= self._until:
            self._until, self._left = now + _REFUSALS_EVERY_S, _REFUSALS_LOGGED_MAX
        if not self._left:
            self._unlogged += 1
            return
        self._left -= 1
        _log.warning("key_refused", key=key_id, peer=peer, unlogged=self._unlogged)
        self._unlogged = 0


_refusals: Final = _Refusals()


async def refuse_socket(send: Send, error: TaskError) -> None:
    """Answer a WebSocket handshake with a refusal in JSON."""
    body = wire.dumps(error.as_body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if isinstance(error, UnauthorizedError):
        headers.append(CHALLENGE)
    await send({"type": "websocket.http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
