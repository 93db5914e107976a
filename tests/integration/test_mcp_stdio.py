"""``dispatch mcp``: the official client in both eras against the real command, and the command by hand."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client, MCPError, StdioServerParameters

from dispatch.ats import protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.model import Actor
from dispatch.errors import InvalidInputError, LeaseHeldError, OverloadedError
from dispatch.service.access import Caller
from dispatch.service.mcp.remote import RelayedError, RemoteToolbox
from tests.support.cli import Cli
from tests.support.processes import PATIENCE_S, eventually
from tests.support.redis import free_port
from tests.support.tool_service import TOOLS, ToolService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ERAS = ("auto", "legacy")
ACTOR = Actor("agent", "a-1", "A One")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolService]:
    """A service with the tools."""
    with ToolService(tmp_path_factory.mktemp("stdio")) as running:
        yield running


@pytest.fixture
def cli(service: ToolService, tmp_path: Path) -> Iterator[Cli]:
    """Commands against the service."""
    found = Cli(tmp_path, {"DISPATCH_ATS_URL": service.url})
    yield found
    found.close()


def parameters(cli: Cli, *args: str, **env: str) -> StdioServerParameters:
    """How a client starts the command."""
    argv = ["-m", "dispatch", "mcp", *args]
    return StdioServerParameters(command=sys.executable, args=argv, env={**cli.env, **env}, cwd=cli.home)


# --- the official client ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_the_tools_of_the_service_come_through(cli: Cli, service: ToolService, era: Any) -> None:
    """Definitions, results and refusals are those that HTTP gives; the actor is an agent with the user's name.

    notifications/cancelled closes the connection to the service, whose tool notices; the next call works.
    """
    began, ended = (len(service.process.find(f"wait_{word}")) for word in ("began", "cancelled"))
    async with Client(parameters(cli), mode=era) as client:
        listed = (await client.list_tools()).tools
        assert [tool.name for tool in listed] == [tool["name"] for tool in TOOLS]
        assert listed[0].output_schema == TOOLS[0]["outputSchema"]
        result = await client.call_tool("get", {"task_id": "7"})
        assert result.structured_content == {"task_id": "7", "assigned_to": None, "title": "Grüße, 世界"}
        refused = await client.call_tool("claim", {"task_id": "7"})
        wanted = LeaseHeldError("Task 7 is held by agent-1 until 12:00.", locked_by="agent-1", retry_after_ms=1500)
        assert (refused.is_error, refused.structured_content) == (True, wanted.as_body())
        assert [block.text for block in refused.content if block.type == "text"] == [wanted.as_text()]
        task = asyncio.create_task(client.call_tool("wait", {"seconds": 60}))
        await asyncio.to_thread(service.process.wait_event, "wait_began", count=began + 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(service.process.wait_event, "wait_cancelled", count=ended + 1)
        who = await client.call_tool("whoami", {})
        assert who.structured_content == {"type": "agent", "id": "tester", "name": "tester"}


async def test_options_choose_the_profile_and_the_actor(cli: Cli) -> None:
    """--profile goes to the service, --actor-id and --actor-name into the headers."""
    options = ("--profile", "worker", "--actor-id", "r-2", "--actor-name", "Reviewer")
    async with Client(parameters(cli, *options)) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["get", "claim"]
        who = await client.call_tool("whoami", {})
        assert who.structured_content == {"type": "agent", "id": "r-2", "name": "Reviewer"}


async def test_a_waiting_call_shows_that_it_lives(cli: Cli) -> None:
    """Every five seconds a progress notification, made by the command itself."""
    seen: list[tuple[float, str | None]] = []

    async def note(done: float, _total: float | None, message: str | None) -> None:
        seen.append((done, message))

    async with Client(parameters(cli)) as client:
        await client.call_tool("wait", {"seconds": 8}, progress_callback=note)
    ((done, message),) = seen
    assert 5 <= done < 8
    assert message == "wait still waits"


@pytest.mark.parametrize("era", ["auto", pytest.param("legacy", marks=pytest.mark.slow)])
async def test_a_service_that_is_away_is_told_and_its_return_noticed(tmp_path: Path, era: Any) -> None:
    """tools/list is an error of the protocol, a call a refusal, both with what to do; then both work."""
    where = f"127.0.0.1:{free_port()}"
    service = ToolService(tmp_path / "data", DISPATCH_BIND=where)
    cli = Cli(tmp_path, {"DISPATCH_ATS_URL": f"http://{where}"})
    async with Client(parameters(cli), mode=era) as client:
        with pytest.raises(MCPError, match=r"^UNAVAILABLE: .*connection refused.*dispatch serve"):
            await client.list_tools()
        result = await client.call_tool("get", {"task_id": "1"})
        assert result.is_error
        assert result.structured_content is not None
        assert result.structured_content["code"] == "UNAVAILABLE"
        assert "dispatch serve" in str(result.structured_content["next"])
        with service:
            assert len((await client.list_tools()).tools) == len(TOOLS)
            assert not (await client.call_tool("get", {"task_id": "1"})).is_error


# --- the toolbox ------------------------------------------------------------------------------------------------------


async def test_every_refusal_of_the_service_is_relayed_as_it_is(service: ToolService) -> None:
    """Whatever its status: 400 and 403 have the text and the body that the service made."""
    async with AsyncClient(protocol.endpoint(service.url), ACTOR) as client:
        toolbox = RemoteToolbox(client)
        with pytest.raises(RelayedError) as found:
            await toolbox.call("get", {}, Caller(ACTOR))
        wanted = InvalidInputError("get needs 'task_id'.")
        assert (found.value.as_body(), found.value.as_text()) == (wanted.as_body(), wanted.as_text())
        with pytest.raises(RelayedError) as found:
            await toolbox.call("forbid", {}, Caller(ACTOR))
        assert (found.value.status, found.value.as_body()["code"]) == (403, "FORBIDDEN")


async def test_something_that_is_no_task_service_is_told(service: ToolService) -> None:
    """An answer that has no tools in it, or is not JSON, is UNAVAILABLE, not a crash."""
    async with AsyncClient(protocol.endpoint(f"{service.url}/elsewhere"), ACTOR) as client:
        with pytest.raises(RelayedError, match="nothing at this path"):
            await RemoteToolbox(client).definitions()

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncClient(protocol.endpoint(f"http://127.0.0.1:{port}"), ACTOR) as client:
        with pytest.raises(OverloadedError, match="not JSON"):
            await RemoteToolbox(client).definitions()


# --- by hand ----------------------------------------------------------------------------------------------------------

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "hand", "version": "1"}},
}
OPENING = [INITIALIZE, {"jsonrpc": "2.0", "method": "notifications/initialized"}]


def call(ident: int, name: str, **arguments: Any) -> dict[str, Any]:
    """A tools/call as JSON-RPC."""
    return {"jsonrpc": "2.0", "id": ident, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


def lines_of(*messages: dict[str, Any]) -> str:
    """Messages as the command reads them."""
    return "".join(json.dumps(message) + "\n" for message in messages)


def test_requests_in_a_pipe_are_answered_before_the_end(cli: Cli) -> None:
    """Nothing but the protocol is on stdout and nothing on stderr; the end of stdin is exit code 0."""
    done = cli("mcp", stdin=lines_of(*OPENING, call(1, "get", task_id="1"), call(2, "claim", task_id="1")))
    answers = {answer["id"]: answer["result"] for answer in map(json.loads, done.out.splitlines())}
    assert (done.code, done.err, set(answers)) == (0, "", {0, 1, 2})
    assert (answers[1]["isError"], answers[2]["isError"]) == (False, True)


def test_lines_that_are_no_messages_do_no_harm(cli: Cli) -> None:
    """Garbage, blank lines and unknown methods are passed over or refused; what follows is answered."""
    odd = lines_of({"jsonrpc": "2.0", "id": 8, "method": "no/such"}) + '\n{"a":\n[1,2]\n\x00\n"\\ud800"\nnull\n'
    done = cli("mcp", stdin=lines_of(*OPENING) + odd + lines_of(call(9, "get", task_id="1")))
    answers = {answer.get("id"): answer for answer in map(json.loads, done.out.splitlines())}
    assert done.code == 0
    assert "Traceback" not in done.err
    assert answers[8]["error"]["code"] == -32601
    assert answers[9]["result"]["structuredContent"]["task_id"] == "1"


def test_half_a_character_in_an_argument_is_refused_to_the_model(cli: Cli) -> None:
    """The SDK would leave such a call without an answer, and its client waiting."""
    ended = cli(
        "mcp", stdin=lines_of(call(1, "core_get_task", task_id="\ud83d"), call(2, "core_get_task", task_id="\0"))
    )
    results = {one["id"]: one["result"] for one in map(json.loads, ended.out.splitlines()) if one["id"] in (1, 2)}
    assert [results[ident]["isError"] for ident in (1, 2)] == [True, True]
    assert "lone surrogate" in results[1]["content"][0]["text"]


def waiting_command(cli: Cli, service: ToolService) -> subprocess.Popen[str]:
    """The command with a call that waits."""
    began = len(service.process.find("wait_began"))
    process = cli.start("mcp", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(lines_of(*OPENING, call(1, "wait", seconds=600)))
    process.stdin.flush()
    service.process.wait_event("wait_began", count=began + 1)
    return process


@pytest.mark.parametrize(
    ("how", "code"),
    [
        pytest.param("eof", 0, id="eof"),
        pytest.param(signal.SIGTERM, 0, id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, id="SIGINT"),
    ],
)
def test_it_ends_at_once_whatever_waits(cli: Cli, service: ToolService, how: Any, code: int) -> None:
    """End of stdin, SIGTERM and SIGINT: the service's call is ended too, and nothing is said on stderr.

    An idle machine takes 0.6 s; a busy one several times that for the end of the process alone, so the limit here only
    tells it from waiting for the call (600 s) or for another line (never).
    """
    ended = len(service.process.find("wait_cancelled"))
    process = waiting_command(cli, service)
    if how == "eof":
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    else:
        process.send_signal(how)
    assert process.wait(PATIENCE_S) == code
    assert process.stderr is not None
    assert process.stderr.read() == ""
    service.process.wait_event("wait_cancelled", count=ended + 1)


def test_a_client_that_stops_reading_does_not_hold_it(cli: Cli) -> None:
    """With a full pipe on stdout it ends at SIGTERM all the same."""
    process = cli.start("mcp", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(lines_of(*OPENING, *(call(number, "echo", value="x" * 40_000) for number in range(1, 9))))
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["id"] == 0
    eventually(lambda: len(process.stdout.buffer.peek()) > 0, "the first results")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def test_a_wrong_setting_is_told_on_stderr_only(cli: Cli) -> None:
    """The command ends with 78 before it speaks the protocol."""
    done = cli("mcp", "--url", "ftp://nowhere", stdin="")
    assert (done.code, done.out) == (78, "")
    assert "must start with http:// or https://" in done.err
