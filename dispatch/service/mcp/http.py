"""The MCP face over streamable HTTP: what happens to a request before and after the SDK sees it.

``McpFace`` is an ASGI application for ``/mcp`` and its metadata. It reads who
calls, checks what every era of the protocol has in common, and hands the rest
to the SDK, stateless: each POST stands alone, so any number of server processes
may answer one client. Every refusal is JSON, in the shape of JSON-RPC.

The SDK is imported when the first request comes: 34 MB and half a second that
a service without MCP clients does not pay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from dispatch.asynchronous import cancel_all
from dispatch.errors import (
    InternalError,
    InvalidInputError,
    MethodNotAllowedError,
    SlowBodyError,
    TaskError,
    UnauthorizedError,
)
from dispatch.log import get_logger
from dispatch.service import strict, wire
from dispatch.service.body import GoneError, read_body
from dispatch.service.mcp.unreadable import refused_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from starlette.types import Message, Receive, Scope, Send

    from dispatch.service.access import Caller
    from dispatch.service.calls import Calls
    from dispatch.service.mcp.server import Exchange
    from dispatch.service.tools.model import Toolbox

PATH: Final = "/mcp"
METADATA_PATH: Final = "/.well-known/oauth-protected-resource/mcp"
BODY_BYTES_MAX: Final = 1_048_576

_STATE: Final = "dispatch.mcp"
_VERSION: Final = b"mcp-protocol-version"
_STATELESS: Final = b"2026-07-28"
_SESSION: Final = b"mcp-session-id"
_PARSE_ERROR_RPC: Final = -32700
_INVALID_RPC: Final = -32600
_ACCEPTED: Final = ({"application/json", "application/*", "*/*"}, {"text/event-stream", "text/*", "*/*"})
_log: Final = get_logger("mcp")


class NotAcceptableError(InvalidInputError):
    """The client does not take the kinds of answer that there are."""

    http_status = 406


class WrongContentTypeError(InvalidInputError):
    """The body is not announced as JSON."""

    http_status = 415


class NotJsonError(InvalidInputError):
    """The body cannot be read as JSON."""


def serves(path: str) -> bool:
    """Say whether a path belongs to the MCP face."""
    return path in (PATH, PATH + "/", METADATA_PATH)


class McpFace:
    """The ASGI application; see the module.

    ``caller_of`` looks at the ASGI scope and says who calls; it raises TaskError
    for whom it does not serve, a foreign Host or Origin included. Stop ``calls``
    when the service begins to stop, and call ``close`` at its end.
    """

    def __init__(self, toolbox: Toolbox, caller_of: Callable[[Any], Awaitable[Caller]], calls: Calls) -> None:
        self._toolbox = toolbox
        self._caller_of = caller_of
        self._calls = calls
        self._engine: asyncio.Future[StreamableHTTPSessionManager] | None = None
        self._runner: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if scope["path"] == METADATA_PATH:
                await _answer_metadata(scope, sent)
                return
            await self._answer(scope, receive, sent)
        except GoneError:
            return
        except TaskError as exc:
            await _refuse(scope, sent, exc)
        except Exception:
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            if started:
                raise
            await _refuse(scope, sent, InternalError("The service made a mistake; its log says more."))

    async def close(self) -> None:
        """End the SDK's part and whatever still hangs on it."""
        if self._runner is not None:
            await cancel_all([self._runner])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        caller = await self._caller_of(scope)
        _check_head(scope["method"], headers)
        length = headers.get(b"content-length", b"")
        raw = await read_body(receive, int(length) if length.isdigit() else None, BODY_BYTES_MAX)
        try:
            message = _read_message(raw)
        except NotJsonError as exc:
            if (answer := refused_call(raw, str(exc))) is None:
                raise
            if headers.get(_VERSION, b"") >= _STATELESS:
                answer["result"]["resultType"] = "complete"
            await _send_json(send, 200, answer, [])
            return
        session = headers.get(_SESSION, b"").decode("latin-1")
        ident = message.get("id")
        if message.get("method") == "notifications/cancelled" and session:
            self._cancel(session, message)

        engine = await self._started()
        from dispatch.service.mcp.server import Exchange  # noqa: PLC0415 - brings the SDK

        key = (session, ident) if session and isinstance(ident, str | int) else None
        scope = {
            **scope,
            "headers": [*((k, v) for k, v in scope["headers"] if k != b"accept"), (b"accept", b"*/*")],
            _STATE: Exchange(caller, _profile(scope), key),
        }
        if message.get("method") == "initialize" and not session:
            send = _naming(send)
        await engine.handle_request(scope, _replaying(raw, receive), send)

    def _cancel(self, session: str, message: dict[str, Any]) -> None:
        params = message.get("params")
        ident = params.get("requestId") if isinstance(params, dict) else None
        if isinstance(ident, str | int):
            self._calls.cancel((session, ident))

    async def _started(self) -> StreamableHTTPSessionManager:
        if self._engine is None:
            self._engine = asyncio.get_running_loop().create_future()
            # The SDK's task group must be entered and left by one task, which no request is.
            self._runner = asyncio.create_task(self._run(self._engine), name="mcp")
        return await asyncio.shield(self._engine)

    async def _run(self, engine: asyncio.Future[StreamableHTTPSessionManager]) -> None:
        try:
            manager = await asyncio.to_thread(self._load)
            async with manager.run():
                engine.set_result(manager)
                await asyncio.Event().wait()
        except Exception as exc:
            if engine.done():
                raise
            self._engine = None
            engine.set_exception(exc)
        finally:
            engine.cancel()

    def _load(self) -> StreamableHTTPSessionManager:
        """Import the SDK and build the server; in a thread, because it takes half a second."""
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager  # noqa: PLC0415 - see the module

        from dispatch.service.mcp.server import build_server  # noqa: PLC0415 - the same

        # Its warnings are about what clients send; they have their answer already.
        logging.getLogger("mcp").setLevel(logging.ERROR)
        server = build_server(self._toolbox, _exchange_of, self._calls)
        # No settings of transport security: who may call was decided before.
        return StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=BODY_BYTES_MAX)


def _exchange_of(ctx: Any) -> Exchange:
    found: Exchange = ctx.request.scope[_STATE]
    return found


def _check_head(method: str, headers: dict[bytes, bytes]) -> None:
    if method != "POST":
        # The protocol's GET stream would carry nothing, and there is no session that DELETE could end.
        raise MethodNotAllowedError(f"{method} is not possible at {PATH}; possible: POST.")
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise WrongContentTypeError("The body must be JSON: send the header 'Content-Type: application/json'.")
    accept = headers.get(b"accept", b"*/*").decode("latin-1").lower()
    kinds = {item.partition(";")[0].strip() for item in accept.split(",")} - {""} or {"*/*"}
    if not all(kinds & wanted for wanted in _ACCEPTED):
        raise NotAcceptableError(
            "An answer is JSON or an event stream: send the header 'Accept: application/json, text/event-stream'."
        )


def _read_message(raw: bytes) -> dict[str, Any]:
    try:
        message = strict.parse_json(raw)
    except InvalidInputError as exc:
        raise NotJsonError(str(exc)) from None
    if isinstance(message, list):
        raise InvalidInputError("A body holds one JSON-RPC message, not a batch; send one request for each.")
    if not isinstance(message, dict):
        raise InvalidInputError("A body must be one JSON-RPC message, a JSON object.")
    return message


def _profile(scope: Scope) -> str:
    try:
        found = parse_qs(scope["query_string"].decode("ascii"), max_num_fields=16).get("profile")
    except ValueError:
        raise InvalidInputError("The query cannot be read; it may be ?profile=NAME.") from None
    return found[-1][:64] if found else "default"


def _replaying(raw: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the body once more, then waits for the end of the connection."""
    waiting: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _naming(send: Send) -> Send:
    """Return a ``send`` that gives the client a session id.

    No state hangs on it: its requests carry it from then on, and that is how
    ``notifications/cancelled`` of the older protocols finds the call it means.
    """

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            headers = [*message["headers"], (_SESSION, secrets.token_urlsafe(18).encode())]
            message = {**message, "headers": headers}
        await send(message)

    return named


def _base_url(scope: Scope) -> str:
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return f"{scope.get('scheme', 'http')}://{host}"


async def _refuse(scope: Scope, send: Send, error: TaskError) -> None:
    code = _PARSE_ERROR_RPC if isinstance(error, NotJsonError) else _INVALID_RPC
    headers = []
    if isinstance(error, UnauthorizedError):
        challenge = f'Bearer resource_metadata="{_base_url(scope)}{METADATA_PATH}"'
        headers.append((b"www-authenticate", challenge.encode("latin-1", "replace")))
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", b"POST"))
    if error.http_status == 503:
        headers.append((b"retry-after", b"1"))
    if isinstance(error, SlowBodyError):
        headers.append((b"connection", b"close"))
    rpc = {"code": code, "message": error.as_text(), "data": error.as_body()}
    await _send_json(send, error.http_status, {"jsonrpc": "2.0", "id": None, "error": rpc}, headers)


async def _answer_metadata(scope: Scope, send: Send) -> None:
    """Say how to be let in (RFC 9728): with a key in a header; there is no server that gives keys out."""
    if scope["method"] not in ("GET", "HEAD"):
        raise MethodNotAllowedError(f"{scope['method']} is not possible here; possible: GET.")
    found = {
        "resource": _base_url(scope) + PATH,
        "resource_name": "dispatch task service",
        "bearer_methods_supported": ["header"],
    }
    await _send_json(send, 200, found, [])


async def _send_json(send: Send, status: int, value: Any, headers: list[tuple[bytes, bytes]]) -> None:
    body = wire.dumps(value).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})
