"""The ATS face over REST: a request in, one JSON answer out.

``RestFace`` is an ASGI application. It reads the caller, the route and the
body, calls the handler, and writes the answer; every refusal is JSON. Routes
are a table keyed by the shape of the path, so that finding one costs a lookup.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from dispatch.errors import (
    InternalError,
    InvalidInputError,
    MethodNotAllowedError,
    NotFoundError,
    SlowBodyError,
    TaskError,
    UnauthorizedError,
)
from dispatch.log import get_logger
from dispatch.service import strict, wire
from dispatch.service.access import NOBODY, Access
from dispatch.service.body import GoneError, read_body
from dispatch.service.caller import CHALLENGE, authenticate, check_open, read_headers, refuse_socket
from dispatch.service.calls import while_connected
from dispatch.service.handlers import ROUTES, Call, Context, call_tool
from dispatch.service.rows import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Send
    from starlette.types import Scope as AsgiScope

    from dispatch.service.calls import Calls

_QUERY_FIELDS_MAX: Final = 64
_SCOPED: Final = ("tasks", "deliveries")
"""What can stand behind a project in a path."""
_log: Final = get_logger("service")


@dataclass(frozen=True, slots=True)
class _Match:
    methods: dict[str, tuple[Callable[[Call], Awaitable[tuple[int, str]]], int]]
    names: tuple[str, ...]
    scope: Scope | None
    shape: tuple[str, ...]


OPEN_PATHS: Final = frozenset({"/health", "/health/"})
"""What is answered without a key."""


def access_needed(method: str, shape: tuple[str, ...]) -> Access:
    """Return what a key must allow: READ to look, WRITE to change tasks, ADMIN for organisations and steering.

    A tool says itself what it needs; the toolbox checks that.
    """
    if method == "GET" or shape[0] == "tools":
        return Access.READ
    return Access.ADMIN if shape[0] in ("orgs", "steering") else Access.WRITE


def _match(path: str) -> _Match:
    if "\0" in path:
        raise NotFoundError("There is nothing at this path.")
    parts = path.split("/")[1:]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    scope: Scope | None = None
    if len(parts) >= 5 and parts[0] == "orgs" and parts[2] == "projects" and parts[4] in _SCOPED:
        scope = Scope(parts[1], parts[3])
        parts = parts[4:]
    if parts[0] == "steering" and len(parts) > 3:
        parts = [*parts[:2], "/".join(parts[2:])]  # a channel may be called a/b
    for shape in _shapes(parts):
        methods = ROUTES.get(shape)
        if methods is not None and not (scope is not None and shape == ("tasks", "stats")):
            names = tuple(part for part, word in zip(parts, shape, strict=True) if word == "*")
            return _Match(methods, names, scope, shape)
    raise NotFoundError("There is nothing at this path.")


def _shapes(parts: list[str]) -> tuple[tuple[str, ...], ...]:
    exact = tuple(parts)
    if len(parts) == 2:
        return exact, (parts[0], "*")
    if len(parts) == 3:
        return (parts[0], "*", parts[2]), (parts[0], "*", "*")
    if len(parts) == 4:
        return ((parts[0], "*", parts[2], "*"),)
    return (exact,)


def _query(raw: bytes) -> list[tuple[str, str]]:
    if not raw:
        return []
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_QUERY_FIELDS_MAX)
    except ValueError:
        raise InvalidInputError(
            "The query cannot be read: it is not percent-encoded UTF-8 or has too many parts."
        ) from None


class RestFace:
    """The ASGI application; see the module."""

    def __init__(self, context: Context, calls: Calls) -> None:
        self._context = context
        self._calls = calls

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await receive()
            await refuse_socket(send, NotFoundError("The WebSocket is at /ws."))
            return
        close = challenge = False
        try:
            status, text = await self._answer(scope, receive)
        except GoneError:
            return
        except TaskError as exc:
            status, text = exc.http_status, wire.dumps(exc.as_body())
            close, challenge = isinstance(exc, SlowBodyError), isinstance(exc, UnauthorizedError)
        except Exception:  # noqa: BLE001 - the boundary: whatever went wrong, the client gets JSON
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            error = InternalError("The service made a mistake; its log says more.")
            status, text = error.http_status, wire.dumps(error.as_body())
        body = text.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if close:
            headers.append((b"connection", b"close"))
        if challenge:
            headers.append(CHALLENGE)
        if status == 503:
            headers.append((b"retry-after", b"1"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: AsgiScope, receive: Receive) -> tuple[int, str]:
        context = self._context
        heads = read_headers(scope["headers"])
        if scope["path"] in OPEN_PATHS:
            await check_open(context.store, heads, context.origins)
            caller = NOBODY
        else:
            caller = await authenticate(context.store, heads, scope.get("client"), context.origins)
        match = _match(scope["path"])
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        found = match.methods.get(method)
        if found is None:
            raise MethodNotAllowedError(
                f"{scope['method']} is not possible here; possible: {', '.join(sorted(match.methods))}."
            )
        caller.require(access_needed(method, match.shape))
        handler, bytes_max = found
        body: Any = {}
        if method != "GET":
            raw = await read_body(receive, heads.length, bytes_max)
            if raw.strip():
                body = strict.parse_json(raw)
        query = _query(scope["query_string"])
        if query and method != "GET":
            raise InvalidInputError("This call takes its values in the body, not in the query.")
        call = Call(context, caller, match.scope, match.names, body, query)
        if handler is not call_tool:
            return await handler(call)
        async with self._calls.running(None):
            return await while_connected(receive, call_tool(call))
