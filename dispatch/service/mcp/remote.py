"""The tools of a service elsewhere, as a toolbox: what ``dispatch mcp`` forwards to."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

from dispatch.asynchronous import cancel_all
from dispatch.ats import answers, protocol
from dispatch.errors import GatewayError, OverloadedError, TaskError
from dispatch.service.tools.model import no_progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from dispatch.ats.aclient import AsyncClient
    from dispatch.service.access import Caller

CALL_DEADLINE_S: Final = 270.0
"""Longer than the longest wait that a tool allows, 240 s."""

PROGRESS_S: Final = 5.0
"""How often a client is told that a call still waits."""


class RelayedError(TaskError):
    """A refusal of the service, passed on as it came."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body["error"]))
        self.status = status
        self._body = body

    def as_body(self) -> dict[str, Any]:
        """Return the body as the service sent it."""
        return self._body

    def as_text(self) -> str:
        """Return the refusal as one text, as the service itself would write it."""
        said = self._body
        parts = [f"{said['code']}: {said['error']}", said.get("why")]
        parts.append(f"Next: {said['next']}" if said.get("next") else None)
        return " ".join(str(part) for part in parts if part)


class RemoteToolbox:
    """Implements ``Toolbox`` over REST. Every call is made as the client's own actor.

    Nothing is kept between calls: when the service was away and is back, the
    next call works.
    """

    def __init__(self, client: AsyncClient, *, progress_s: float = PROGRESS_S) -> None:
        self._client = client
        self._progress_s = progress_s

    async def definitions(self, profile: str = "default") -> Sequence[Mapping[str, Any]]:
        """Ask the service. Raises TaskError."""
        found = await self._send(protocol.tools(profile), protocol.DEADLINE_S)
        tools = found.get("tools")
        if not isinstance(tools, list):
            raise self._unavailable("it does not know the Task Tools")
        return tools

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        caller: Caller,  # noqa: ARG002 - the service knows the caller by the key or the headers
        progress: Callable[[float, float | None, str], Awaitable[None]] = no_progress,
    ) -> dict[str, Any]:
        """Have the service run a tool; meanwhile say every few seconds that it still waits."""
        ticking = asyncio.create_task(self._tick(name, progress))
        try:
            return await self._send(protocol.tool(name, arguments), CALL_DEADLINE_S)
        finally:
            await cancel_all([ticking])

    async def _tick(self, name: str, progress: Callable[[float, float | None, str], Awaitable[None]]) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(self._progress_s)
            await progress(time.monotonic() - began, None, f"{name} still waits")

    async def _send(self, request: protocol.Request, deadline_s: float) -> dict[str, Any]:
        try:
            status, headers, content = await self._client.exchange(request, deadline_s=deadline_s)
            if status >= 400:
                _raise_relayed(status, content)
            found = answers.interpret(status, headers, content)
        except GatewayError as exc:
            raise self._unavailable(str(exc)) from None
        except ValueError as exc:
            raise self._unavailable(str(exc)) from None
        if not isinstance(found, dict):
            raise self._unavailable("its answer is no JSON object")
        return found

    def _unavailable(self, reason: str) -> OverloadedError:
        return OverloadedError(
            f"The task service at {self._client.endpoint.base_url} cannot be used now: {reason.rstrip('.')}.",
            next_step="Call again in some seconds; if it stays so, ask a person to start it with 'dispatch serve' "
            "or to set DISPATCH_ATS_URL.",
        )


def _raise_relayed(status: int, content: bytes) -> None:
    """Raise the refusal that a body holds, if it holds one."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(body, dict) and isinstance(body.get("error"), str) and isinstance(body.get("code"), str):
        raise RelayedError(status, body)
