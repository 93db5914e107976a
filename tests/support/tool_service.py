"""A real service process with a small set of tools, for what carries tools: MCP and REST.

``ToolService`` starts it; run as a module, this file is it. The tools are made
to be slow, to refuse, to fail and to wait. What happens in them is logged, so
that a test can see it from outside.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dispatch import log, settings
from dispatch.errors import (
    ForbiddenError,
    InvalidInputError,
    LeaseHeldError,
    NotFoundError,
    UnauthorizedError,
)
from dispatch.service.access import Caller
from dispatch.service.app import create_app
from dispatch.service.caller import actor_of, read_headers
from dispatch.service.clock import Clock
from dispatch.service.server import listen, open_store, serve_app
from dispatch.service.tools.model import no_progress
from tests.support.service import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

KEY: Final = "dk_test_0123456789"
_TEXT: Final = {"type": "string", "maxLength": 512}
_log: Final = log.get_logger("tools")


def _tool(name: str, properties: dict[str, Any], required: list[str], output: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "description": f"Does {name}.",
        "inputSchema": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
        "outputSchema": {"type": "object", "properties": output, "required": sorted(output)},
        "annotations": {
            "readOnlyHint": name == "get",
            "destructiveHint": False,
            "idempotentHint": name == "get",
            "openWorldHint": False,
        },
    }


TOOLS: Final = (
    _tool("get", {"task_id": _TEXT}, ["task_id"], {"task_id": _TEXT, "assigned_to": {"type": ["string", "null"]}}),
    _tool("claim", {"task_id": _TEXT}, ["task_id"], {"claimed": {"type": "boolean"}}),
    _tool("wait", {"seconds": {"type": "number"}}, ["seconds"], {"waited_s": {"type": "number"}}),
    _tool("whoami", {}, [], {"type": _TEXT, "id": _TEXT, "name": _TEXT}),
    _tool("echo", {"value": {}}, ["value"], {"value": {}}),
    _tool("forbid", {}, [], {"never": {"type": "boolean"}}),
    _tool("break", {}, [], {"never": {"type": "boolean"}}),
)


class SmallToolbox:
    """A ``Toolbox`` whose tools do what a test wants to see carried."""

    async def definitions(self, profile: str = "default") -> Sequence[Mapping[str, Any]]:
        """Return all, or two for a worker."""
        if profile not in ("default", "worker", "all"):
            raise InvalidInputError(f"There is no profile {profile!r}; there are all, default and worker.")
        return TOOLS[:2] if profile == "worker" else TOOLS

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        caller: Caller,
        progress: Callable[[float, float | None, str], Awaitable[None]] = no_progress,
    ) -> dict[str, Any]:
        """Run one."""
        _check(name, arguments)
        if name == "get":
            return {"task_id": arguments["task_id"], "assigned_to": None, "title": "Grüße, 世界"}
        if name == "claim":
            raise LeaseHeldError("Task 7 is held by agent-1 until 12:00.", locked_by="agent-1", retry_after_ms=1500)
        if name == "whoami":
            return {"type": caller.actor.type, "id": caller.actor.id, "name": caller.actor.name}
        if name == "echo":
            return {"value": arguments["value"]}
        if name == "forbid":
            raise ForbiddenError("The key may only read.")
        if name == "break":
            raise RuntimeError("a mistake in the tool")
        return await _wait(float(arguments["seconds"]), progress)


def _check(name: str, arguments: Mapping[str, Any]) -> None:
    known = next((tool for tool in TOOLS if tool["name"] == name), None)
    if known is None:
        raise NotFoundError(f"There is no tool {name!r}.")
    schema = known["inputSchema"]
    for key in arguments:
        if key not in schema["properties"]:
            raise InvalidInputError(f"{name} has no parameter {key!r}.")
    for key in schema["required"]:
        if key not in arguments:
            raise InvalidInputError(f"{name} needs {key!r}.")


async def _wait(seconds: float, progress: Callable[[float, float | None, str], Awaitable[None]]) -> dict[str, Any]:
    _log.info("wait_began", seconds=seconds)
    try:
        for step in range(round(seconds * 10)):
            await asyncio.sleep(0.1)
            # The second value repeats the first: what does not rise must not be sent.
            await progress(float(step // 2), seconds, f"step {step}")
    except asyncio.CancelledError:
        _log.info("wait_cancelled", seconds=seconds)
        raise
    return {"waited_s": seconds}


async def keyed_caller(scope: Any) -> Caller:
    """Serve whoever has the key, from wherever."""
    sent = dict(scope["headers"]).get(b"authorization", b"")
    if sent != f"Bearer {KEY}".encode():
        raise UnauthorizedError("The request carries no API key.")
    heads = read_headers(scope["headers"])
    names = (heads.actor_type, heads.actor_id, heads.actor_name)
    return Caller(actor_of(*(name.decode() for name in names)), is_keyed=True)


class ToolService(ServiceProcess):
    """The process. With ``keys`` every request to /mcp needs KEY, and any Host is served."""

    def __init__(self, directory: Path, *, keys: bool = False, **settings: str) -> None:
        super().__init__(directory, **settings)
        self.argv = [sys.executable, "-m", "tests.support.tool_service", *(["keys"] if keys else [])]


async def _main(is_keyed: bool) -> None:
    found = settings.load()
    log.configure(found.local.log_level)
    sock = listen(found.service.bind)
    store = open_store(found.database_url, Clock())
    await store.start()
    app = create_app(store, toolbox=SmallToolbox())
    if is_keyed:
        app.mcp._caller_of = keyed_caller
    try:
        await serve_app(app, sock)
    finally:
        sock.close()
        await store.close()


if __name__ == "__main__":
    import uvloop

    Path(settings.load().local.data_dir).mkdir(parents=True, exist_ok=True)
    uvloop.run(_main("keys" in sys.argv))
