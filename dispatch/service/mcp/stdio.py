"""MCP over stdin and stdout: the streams, the signals and the end of ``dispatch mcp``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
from typing import TYPE_CHECKING, Any, Final, Self, cast

from mcp.server.stdio import stdio_server

from dispatch.asynchronous import cancel_all
from dispatch.errors import InvalidInputError
from dispatch.service import strict
from dispatch.service.calls import Calls
from dispatch.service.mcp.server import Exchange, build_server
from dispatch.service.mcp.unreadable import refused_call
from dispatch.service.wire import dumps

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.service.access import Caller
    from dispatch.service.tools.model import Toolbox

EXIT_INTERRUPTED: Final = 130
_FAREWELL_S: Final = 0.3
"""How long what was asked for may still be answered when stdin has ended."""
_TURN_S: Final = 0.02
_LINES_AHEAD: Final = 16


class _Input:
    """The lines of a file descriptor, read by a thread that nobody has to wait for.

    A read of a pipe cannot be cancelled; the SDK's own reader would keep the
    process until the client says one more word. ``answer`` writes a line that answers one at once.
    """

    def __init__(self, descriptor: int, at_end: Callable[[], Any], answer: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._at_end = at_end
        self._answer = answer
        self._is_ended = False
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue(_LINES_AHEAD)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        rest = b""
        # The loop may be gone at any moment, which is the end of this thread too.
        with contextlib.suppress(RuntimeError, OSError):
            while data := os.read(self._descriptor, 65_536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._put(line)
            if rest:
                self._put(rest)
        with contextlib.suppress(RuntimeError):
            self._put(None)

    def _put(self, line: bytes | None) -> None:
        if line is not None and (refusal := _refusal(line)) is not None:
            self._answer(refusal)
            return
        text = None if line is None else line.decode("utf-8", "replace")
        if text is None or text.strip():
            asyncio.run_coroutine_threadsafe(self._lines.put(text), self._loop).result()

    def end(self) -> None:
        """Act as if the client had closed its side, and wait for nothing."""
        self._is_ended = True
        while not self._lines.empty():
            self._lines.get_nowait()
        self._lines.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        line = await self._lines.get()
        if line is None and not self._is_ended:
            await self._at_end()
        if line is None or self._is_ended:
            raise StopAsyncIteration
        return line


def _refusal(line: bytes) -> str | None:
    """Return the answer to a call with half a character, which the SDK would leave without one."""
    if b"\\u" not in line:
        return None
    try:
        strict.parse_json(line)
    except InvalidInputError as exc:
        answer = refused_call(line, str(exc))
        return None if answer is None else dumps(answer) + "\n"
    return None


class _Output:
    """A file descriptor, written by a thread that nobody has to wait for."""

    def __init__(self, descriptor: int, on_broken: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._texts: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="stdout", daemon=True)
        self._writer.start()

    def _write(self) -> None:
        try:
            while (data := self._texts.get()) is not None:
                while data:
                    data = data[os.write(self._descriptor, data) :]
        except OSError:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_broken)

    async def write(self, text: str) -> None:
        """Write soon."""
        self.put(text)

    def put(self, text: str) -> None:
        """Do the same, from any thread."""
        self._texts.put(text.encode("utf-8", "replace"))

    async def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Wait a moment until all is written."""
        self._texts.put(None)
        self._writer.join(_FAREWELL_S)


def claim_stdout() -> int:
    """Return a descriptor for the protocol, and send to stderr whatever else is written to stdout."""
    wire = os.dup(1)
    os.dup2(2, 1)
    return wire


async def serve(toolbox: Toolbox, caller: Caller, profile: str, wire: int) -> int:
    """Serve ``toolbox`` on stdin and the descriptor ``wire`` until stdin ends, and return the exit code.

    SIGTERM ends it with 0, SIGINT with 130; running calls are cancelled.
    """
    loop = asyncio.get_running_loop()
    calls = Calls()
    stopping = asyncio.Event()
    code = 0

    def stop(exit_code: int) -> None:
        nonlocal code
        code = exit_code
        # Not by cancelling: the SDK takes its own end by cancellation for an error.
        lines.end()
        stopping.set()

    async def at_end() -> None:
        # The last lines must first become calls, and the last result must become a line.
        await asyncio.sleep(_TURN_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await calls.wait_idle()
        await asyncio.sleep(_TURN_S)

    server = build_server(toolbox, lambda _: Exchange(caller, profile), calls)
    output = _Output(wire, lambda: stop(0))
    lines = _Input(0, at_end, output.put)

    async def run() -> None:
        # Of a file, the SDK uses what these two have.
        async with stdio_server(cast("Any", lines), cast("Any", output)) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    serving = asyncio.create_task(run())
    loop.add_signal_handler(signal.SIGTERM, stop, 0)
    loop.add_signal_handler(signal.SIGINT, stop, EXIT_INTERRUPTED)
    told = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([serving, told], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([serving], timeout=_FAREWELL_S)
    finally:
        await cancel_all([serving, told])
        output.close()
    if not stopping.is_set() and not serving.cancelled() and (failure := serving.exception()) is not None:
        raise failure
    return code
