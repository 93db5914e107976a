"""The Task Tools as an MCP server on the low-level SDK: what it answers, whatever carries the messages.

Importing this module costs half a second and 34 MB: it brings the whole SDK.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mcp import MCPError
from mcp.server import Server
from mcp.server.caching import CacheHint
from mcp.types import INVALID_PARAMS, CallToolResult, ListToolsResult, TextContent, Tool

import dispatch
from dispatch.errors import InternalError, InvalidInputError, TaskError
from dispatch.log import get_logger
from dispatch.service import wire
from dispatch.service.calls import CancelledByClientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp.server import ServerRequestContext
    from mcp.types import CallToolRequestParams, PaginatedRequestParams

    from dispatch.service.access import Caller
    from dispatch.service.calls import Calls, Key
    from dispatch.service.tools.model import Toolbox

INSTRUCTIONS: Final = """\
Tasks for agents and people. To work: claim_next waits for a task and starts it; or choose one with core_list_tasks
and take it with core_claim_and_start_task. Keep the lease_token of the answer and send it with every later call about
the task. Report progress and questions with post_task_message. When done, core_transition_task to in_review with a
note; to give it back, core_transition_task to todo.
claimed:false is no error: somebody else has the task, or it is not ready; the answer says who or why. Take another.
After STALE_LEASE stop working on that task. Errors say what happened, why, and what to do next."""

TOOLS_TTL_MS: Final = 300_000
"""How long a client may keep the list of tools: it changes only with a new version of the service."""

INTERNAL_RPC: Final = -32603
REQUEST_CANCELLED_RPC: Final = -32800

_log: Final = get_logger("mcp")


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is known of a request besides its JSON."""

    caller: Caller
    profile: str = "default"
    key: Key | None = None
    """What the call can be cancelled by."""


def build_server(
    toolbox: Toolbox, exchange_of: Callable[[ServerRequestContext[Any, Any]], Exchange], calls: Calls
) -> Server[Any]:
    """Return a server that lists and calls the tools of ``toolbox``.

    ``exchange_of`` says for each request who makes it. A refusal is a result
    with ``isError``: its text is the whole refusal, because most clients show
    nothing else, and its structured content is the body that REST answers with.
    """

    async def list_tools(
        ctx: ServerRequestContext[Any, Any], _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        try:
            async with calls.running(None):
                definitions = await toolbox.definitions(exchange_of(ctx).profile)
        except TaskError as exc:
            code = INVALID_PARAMS if isinstance(exc, InvalidInputError) else INTERNAL_RPC
            raise MCPError(code, exc.as_text(), exc.as_body()) from None
        except Exception as exc:
            _log.exception("tool_failed", tool="tools/list")
            raise MCPError(INTERNAL_RPC, _mistake().as_text(), _mistake().as_body()) from exc
        return ListToolsResult(tools=[Tool.model_validate(item) for item in definitions])

    async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        exchange = exchange_of(ctx)
        try:
            async with calls.running(exchange.key):
                result = await toolbox.call(params.name, params.arguments or {}, exchange.caller, _rising(ctx))
        except TaskError as exc:
            return _refused(exc)
        except CancelledByClientError:
            raise MCPError(REQUEST_CANCELLED_RPC, "The client cancelled the call.") from None
        except Exception:  # noqa: BLE001 - the boundary: whatever went wrong, the client gets a result
            _log.exception("tool_failed", tool=params.name[:80])
            return _refused(_mistake())
        return CallToolResult(content=[_text(wire.dumps(result))], structured_content=result)

    server: Server[Any] = Server(
        "dispatch",
        version=dispatch.__version__,
        title="dispatch task service",
        instructions=INSTRUCTIONS,
        cache_hints={"tools/list": CacheHint(ttl_ms=TOOLS_TTL_MS, scope="public")},
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        # No parameter of ours is repeated in a header; without this the SDK lists all tools before each call.
        get_tool_input_schema=lambda _name: None,
    )
    # Spans for a tracer that we never install.
    server.middleware.clear()
    return server


def _rising(ctx: ServerRequestContext[Any, Any]) -> Callable[[float, float | None, str], Awaitable[None]]:
    """Return what tells the client of progress; a value that does not rise is not sent, as the protocol asks."""
    last = float("-inf")

    async def progress(done: float, total: float | None, message: str) -> None:
        nonlocal last
        if done > last:
            last = done
            await ctx.session.report_progress(done, total, message)

    return progress


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


def _refused(error: TaskError) -> CallToolResult:
    return CallToolResult(content=[_text(error.as_text())], structured_content=error.as_body(), is_error=True)


def _mistake() -> InternalError:
    return InternalError("The service made a mistake.")
