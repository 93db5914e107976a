"""MCP over streamable HTTP: the official client in both eras, and requests made by hand, against a real process."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from dispatch.errors import LeaseHeldError
from dispatch.service.mcp.http import BODY_BYTES_MAX, METADATA_PATH
from dispatch.service.mcp.server import INSTRUCTIONS, TOOLS_TTL_MS
from tests.support.processes import ROOT
from tests.support.tool_service import KEY, TOOLS, ToolService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

ERAS = ("auto", "legacy")
VERSIONS = ("2025-03-26", "2025-06-18", "2025-11-25")
MODERN = "2026-07-28"
BOTH = "application/json, text/event-stream"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolService]:
    """A service without keys."""
    with ToolService(tmp_path_factory.mktemp("mcp")) as running:
        yield running


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolService]:
    """A service that wants a key."""
    with ToolService(tmp_path_factory.mktemp("keyed"), keys=True) as running:
        yield running


def post(
    service: ToolService, body: Any, path: str = "/mcp", *, method: str = "POST", **headers: str | None
) -> tuple[int, dict[str, str], Any]:
    """Send one request by hand and return status, headers, and what the JSON or the last event says."""
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    sent = {"Content-Type": "application/json", "Accept": BOTH}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[dict-item]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, raw, {name: value for name, value in sent.items() if value is not None})
        answer = connection.getresponse()
        content = answer.read().decode()
    finally:
        connection.close()
    found = {name.lower(): value for name, value in answer.headers.items()}
    if found.get("content-type", "").startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in content.splitlines() if line.startswith("data: ")]
        return answer.status, found, json.loads(events[-1])
    return answer.status, found, json.loads(content) if content else None


def call(name: str, arguments: dict[str, Any] | None = None, ident: Any = 1) -> dict[str, Any]:
    """A tools/call as JSON-RPC."""
    return {
        "jsonrpc": "2.0",
        "id": ident,
        "method": "tools/call",
        "params": {"name": name, "arguments": arguments or {}},
    }


def errors_of(service: ToolService) -> list[str]:
    """What the service logged as mistakes, the tool that is meant to fail left out."""
    return [
        line
        for line in service.process.output
        if ('"level": "error"' in line or "Traceback" in line) and '"tool": "break"' not in line
    ]


# --- the official client ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_tools_are_listed_as_they_are_defined(service: ToolService, era: Any) -> None:
    """Names, schemas and hints come over in the toolbox's order, with a time to keep them where the era has one."""
    async with Client(f"{service.url}/mcp", mode=era) as client:
        listed = await client.list_tools()
        names = [tool.name for tool in listed.tools]
        assert names == [tool["name"] for tool in TOOLS]
        for tool, wanted in zip(listed.tools, TOOLS, strict=True):
            sent = tool.model_dump(by_alias=True, mode="json", exclude_none=True)
            assert {key: sent[key] for key in wanted} == wanted
        assert listed.ttl_ms == (TOOLS_TTL_MS if era == "auto" else 0)
        info = client.server_info
        assert (info.name, bool(info.version)) == ("dispatch", True)
        assert client.instructions == INSTRUCTIONS


@pytest.mark.parametrize("era", ERAS)
async def test_a_profile_in_the_url_selects_the_tools(service: ToolService, era: Any) -> None:
    """?profile= decides what is listed; an unknown one is refused with the known ones."""
    async with Client(f"{service.url}/mcp?profile=worker", mode=era) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["get", "claim"]
    async with Client(f"{service.url}/mcp?profile=odd", mode=era) as client:
        with pytest.raises(MCPError, match="there are all, default and worker"):
            await client.list_tools()


@pytest.mark.parametrize("era", ERAS)
async def test_a_result_is_whole_in_both_forms(service: ToolService, era: Any) -> None:
    """The text is the structured result as compact JSON, nulls included."""
    async with Client(f"{service.url}/mcp", mode=era) as client:
        result = await client.call_tool("get", {"task_id": "7"})
        assert not result.is_error
        assert result.structured_content == {"task_id": "7", "assigned_to": None, "title": "Grüße, 世界"}
        (block,) = result.content
        assert block.type == "text"
        assert json.loads(block.text) == result.structured_content
        assert " " not in block.text.replace("Grüße, 世界", "")


@pytest.mark.parametrize("era", ERAS)
async def test_a_refusal_says_all_in_its_text_and_in_its_structure(service: ToolService, era: Any) -> None:
    """isError, one text block with code, sentence, reason and next step; the body of REST beside it, whatever the
    tool's output schema wants."""  # noqa: D205, D209 - one sentence
    async with Client(f"{service.url}/mcp", mode=era) as client:
        await client.list_tools()  # From here on the client checks results against the output schema.
        result = await client.call_tool("claim", {"task_id": "7"})
    wanted = LeaseHeldError("Task 7 is held by agent-1 until 12:00.", locked_by="agent-1", retry_after_ms=1500)
    assert result.is_error
    assert [block.text for block in result.content if block.type == "text"] == [wanted.as_text()]
    assert result.structured_content == wanted.as_body()
    schema = next(tool["outputSchema"] for tool in TOOLS if tool["name"] == "claim")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(result.structured_content, schema)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [("nothing", {}, "NOT_FOUND"), ("get", {}, "INVALID"), ("get", {"task_id": "7", "odd": 1}, "INVALID")],
)
async def test_unknown_tools_and_bad_arguments_are_refusals_of_the_toolbox(
    service: ToolService, era: Any, name: str, arguments: dict[str, Any], code: str
) -> None:
    """The model gets a sentence that it can act on, not an error of the protocol."""
    async with Client(f"{service.url}/mcp", mode=era) as client:
        result = await client.call_tool(name, arguments)
        assert result.is_error
        assert result.structured_content is not None
        assert result.structured_content["code"] == code


@pytest.mark.parametrize("era", ERAS)
async def test_a_mistake_in_a_tool_is_told_plainly_and_logged_once(service: ToolService, era: Any) -> None:
    """The client reads INTERNAL without innards; the log has one event with the traceback."""
    before = len(service.process.find("tool_failed"))
    async with Client(f"{service.url}/mcp", mode=era) as client:
        result = await client.call_tool("break", {})
    assert result.is_error
    assert result.structured_content is not None
    assert result.structured_content["code"] == "INTERNAL"
    assert "RuntimeError" not in str(result)
    logged = service.process.wait_event("tool_failed", count=before + 1)
    assert logged["tool"] == "break"
    assert "RuntimeError: a mistake in the tool" in logged["exception"]
    assert len(service.process.find("tool_failed")) == before + 1


@pytest.mark.parametrize("era", ERAS)
async def test_progress_reaches_the_client_and_rises(service: ToolService, era: Any) -> None:
    """Every value is above the one before, and each comes with its text."""
    seen: list[tuple[float, float | None, str | None]] = []

    async def note(done: float, total: float | None, message: str | None) -> None:
        seen.append((done, total, message))

    async with Client(f"{service.url}/mcp", mode=era) as client:
        await client.call_tool("wait", {"seconds": 0.8}, progress_callback=note)
    assert [done for done, _, _ in seen] == [0.0, 1.0, 2.0, 3.0]
    assert {total for _, total, _ in seen} == {0.8}
    assert seen[1][2] == "step 2"


async def cancelled_call(service: ToolService, client: Client) -> None:
    """Begin a call that waits, take it back, and see the tool notice."""
    began = len(service.process.find("wait_began"))
    ended = len(service.process.find("wait_cancelled"))
    task = asyncio.create_task(client.call_tool("wait", {"seconds": 60}))
    await asyncio.to_thread(service.process.wait_event, "wait_began", count=began + 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(service.process.wait_event, "wait_cancelled", count=ended + 1)


@pytest.mark.parametrize("era", ERAS)
async def test_a_cancelled_call_ends_in_the_tool(service: ToolService, era: Any) -> None:
    """By closing the stream in the new era, by notifications/cancelled in the old one; the connection goes on."""
    async with Client(f"{service.url}/mcp", mode=era) as client:
        await cancelled_call(service, client)
        assert not (await client.call_tool("get", {"task_id": "1"})).is_error
    assert errors_of(service) == []


def test_a_client_cannot_cancel_the_call_of_another(service: ToolService) -> None:
    """The same request id under another session, or under none, means nothing."""
    began = len(service.process.find("wait_began"))
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(service.url).port, timeout=60)
    headers = {"Content-Type": "application/json", "Accept": BOTH, "Mcp-Session-Id": "mine"}
    try:
        connection.request("POST", "/mcp", json.dumps(call("wait", {"seconds": 1}, "r1")), headers)
        service.process.wait_event("wait_began", count=began + 1)
        taking_back = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "r1"}}
        assert post(service, taking_back, Mcp_Session_Id="other")[0] == 202
        assert post(service, taking_back)[0] == 202
        assert '"waited_s":1' in connection.getresponse().read().decode()
    finally:
        connection.close()


async def test_a_client_that_hangs_up_ends_its_call(service: ToolService) -> None:
    """Whoever closes the connection is not waited for, in the old era too."""
    began = len(service.process.find("wait_began"))
    ended = len(service.process.find("wait_cancelled"))
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(service.url).port, timeout=60)
    headers = {"Content-Type": "application/json", "Accept": BOTH}
    connection.request("POST", "/mcp", json.dumps(call("wait", {"seconds": 60})), headers)
    await asyncio.to_thread(service.process.wait_event, "wait_began", count=began + 1)
    connection.close()
    await asyncio.to_thread(service.process.wait_event, "wait_cancelled", count=ended + 1)
    assert errors_of(service) == []


# --- one client, several processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("text", ["a\0b", "\ud83d"])
async def test_texts_that_no_store_keeps_are_refused_to_the_model(service: ToolService, era: Any, text: str) -> None:
    """A NUL or half an emoji in an argument is a refusal as a result, which the model reads, with the request's id."""
    params = {"name": "get", "arguments": {"task_id": text}}
    version = MODERN if era == "auto" else VERSIONS[-1]
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    status, _, answer = post(service, body, MCP_Protocol_Version=version)
    assert (status, answer["id"], answer["result"]["isError"]) == (200, 7, True)
    assert answer["result"]["content"][0]["text"].startswith("INVALID: A text contains")
    assert answer["result"]["structuredContent"]["code"] == "INVALID"
    assert ("resultType" in answer["result"]) == (era == "auto")
    other = post(service, {**body, "method": "tools/list"}, MCP_Protocol_Version=version)
    assert (other[0], other[2]["error"]["code"]) == (400, -32700)


class Alternating(httpx2.AsyncBaseTransport):
    """Sends every request to the next of several servers."""

    def __init__(self, urls: list[str]) -> None:
        self._ports = itertools.cycle([urlsplit(url).port for url in urls])
        self._inner = httpx2.AsyncHTTPTransport()
        self.count = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send it on."""
        self.count += 1
        request.url = request.url.copy_with(port=next(self._ports))
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


@asynccontextmanager
async def client_over(transport: Alternating, url: str, era: Any) -> AsyncIterator[Client]:
    """A client over a transport of our own."""
    async with (
        httpx2.AsyncClient(transport=transport, timeout=60) as carrier,
        Client(streamable_http_client(f"{url}/mcp", http_client=carrier), mode=era) as client,
    ):
        yield client


@pytest.mark.parametrize("era", ["auto", pytest.param("legacy", marks=pytest.mark.slow)])
async def test_two_processes_serve_one_client_in_turn(service: ToolService, tmp_path: Path, era: Any) -> None:
    """No request needs the process that answered the one before."""
    with ToolService(tmp_path) as second:
        transport = Alternating([service.url, second.url])
        async with client_over(transport, service.url, era) as client:
            assert len((await client.list_tools()).tools) == len(TOOLS)
            for number in range(6):
                result = await client.call_tool("get", {"task_id": str(number)})
                assert result.structured_content is not None
                assert result.structured_content["task_id"] == str(number)
        assert transport.count >= 7
        assert errors_of(second) == []


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, *VERSIONS])
def test_a_single_post_needs_no_handshake(service: ToolService, version: str | None) -> None:
    """curl with one JSON body gets a result, with any version of the older protocols or none."""
    status, headers, answer = post(service, call("get", {"task_id": "9"}), Accept="*/*", MCP_Protocol_Version=version)
    assert (status, answer["id"]) == (200, 1)
    assert json.loads(answer["result"]["content"][0]["text"])["task_id"] == "9"
    assert "mcp-session-id" not in headers


@pytest.mark.parametrize("version", VERSIONS)
def test_the_handshake_agrees_on_each_older_version(service: ToolService, version: str) -> None:
    """initialize answers in the version that the client asked for."""
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "hand", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": params}
    status, headers, answer = post(service, body)
    assert (status, answer["result"]["protocolVersion"]) == (200, version)
    assert len(headers["mcp-session-id"]) > 20


def test_the_newest_era_answers_in_plain_json_with_hints(service: ToolService) -> None:
    """A request of 2026-07-28 carries its envelope and needs nothing before it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    status, headers, answer = post(service, body, MCP_Protocol_Version=MODERN, Mcp_Method="tools/list")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert (answer["result"]["ttlMs"], answer["result"]["cacheScope"]) == (TOOLS_TTL_MS, "public")


def test_headers_say_who_calls(service: ToolService) -> None:
    """Without keys the actor is the one of the headers, as over REST."""
    _, _, answer = post(service, call("whoami"), X_Actor_Type="human", X_Actor_ID="ada", X_Actor_Name="Ada")
    assert answer["result"]["structuredContent"] == {"type": "human", "id": "ada", "name": "Ada"}


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 403, "FORBIDDEN"),
        ({"Origin": "https://evil.example"}, 403, "FORBIDDEN"),
        ({"X_Actor_Type": "robot"}, 400, "INVALID"),
        ({"Content_Type": "text/plain"}, 415, "INVALID"),
        ({"Content_Type": None}, 415, "INVALID"),
        ({"Accept": "text/html"}, 406, "INVALID"),
        ({"Accept": "application/json"}, 406, "INVALID"),
    ],
)
def test_what_the_head_has_wrong_is_refused_in_json(
    service: ToolService, headers: dict[str, Any], status: int, code: str
) -> None:
    """A JSON-RPC error whose message is the whole refusal and whose data is its body."""
    got, _, answer = post(service, call("get", {"task_id": "1"}), **headers)
    assert (got, answer["id"], answer["error"]["data"]["code"]) == (status, None, code)
    assert answer["error"]["message"].startswith(f"{code}: ")


@pytest.mark.parametrize(
    "accept", [None, "", "*/*", "application/*, text/*", "Application/JSON;q=0.9, text/event-stream"]
)
def test_an_accept_that_allows_both_kinds_is_enough(service: ToolService, accept: str | None) -> None:
    """Absent means anything, as HTTP has it."""
    assert post(service, call("get", {"task_id": "1"}), Accept=accept)[0] == 200


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "HEAD", "OPTIONS"])
def test_only_post_is_served(service: ToolService, method: str) -> None:
    """There is no stream to open and no session to end: 405, as the protocol allows."""
    status, headers, _ = post(service, b"", method=method)
    assert (status, headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "rpc"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b'{"id":1,"id":2}', -32700),
        (b'{"a":NaN}', -32700),
        (b'{"a":"\\ud800"}', -32700),
        (b'{"a":"\\u0000"}', -32700),
        (b"[" * 100_000 + b"]" * 100_000, -32700),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, -32700),
        (b"1" * 5_000, -32700),
        (b"[]", -32600),
        (json.dumps([call("get", {"task_id": "1"})] * 2).encode(), -32600),
        (b"7", -32600),
        (b"null", -32600),
    ],
)
@pytest.mark.parametrize("version", [None, MODERN])
def test_what_is_no_message_is_refused(service: ToolService, body: bytes, rpc: int, version: str | None) -> None:
    """400 with an error of JSON-RPC; nothing is logged as a mistake."""
    status, _, answer = post(service, body, MCP_Protocol_Version=version)
    assert (status, answer["error"]["code"]) == (400, rpc)
    assert errors_of(service) == []


@pytest.mark.parametrize("version", [None, MODERN])
def test_an_unknown_method_is_an_error_of_the_protocol(service: ToolService, version: str | None) -> None:
    """-32601 or, without the envelope of the new era, -32602; never a 5xx."""
    status, _, answer = post(service, {"jsonrpc": "2.0", "id": 1, "method": "no/such"}, MCP_Protocol_Version=version)
    assert status < 500
    assert answer["error"]["code"] in (-32601, -32602, -32020)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(service: ToolService, announced: bool) -> None:
    """413, whether the length was announced or only came. The client reads it each time, though it still sends:
    a server that closed at once would reset the connection instead."""  # noqa: D205, D209 - one thought
    body = json.dumps(call("echo", {"value": "x" * (3 * BODY_BYTES_MAX)})).encode()
    parts = urlsplit(service.url)
    headers = {"Content-Type": "application/json", "Accept": BOTH}
    for _ in range(20):
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        try:
            if announced:
                connection.request("POST", "/mcp", body, headers)
            else:
                chunks = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
                connection.request("POST", "/mcp", chunks, headers, encode_chunked=True)
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["error"]["data"]["code"]) == (413, "TOO_LARGE")
        finally:
            connection.close()


def test_a_body_just_within_the_limit_is_served(service: ToolService) -> None:
    """The limit is the limit, and not the SDK's or the server's."""
    empty = len(json.dumps(call("echo", {"value": ""})))
    value = "x" * (BODY_BYTES_MAX - empty)
    status, _, answer = post(service, call("echo", {"value": value}))
    assert (status, answer["result"]["structuredContent"]["value"] == value) == (200, True)


def test_other_paths_stay_with_rest(service: ToolService) -> None:
    """/mcp/ is /mcp; what only begins with it is not."""
    assert post(service, call("get", {"task_id": "1"}), "/mcp/")[0] == 200
    assert post(service, call("get", {"task_id": "1"}), "/mcpx")[0] == 404
    assert post(service, b"", "/health", method="GET")[0] == 200


# --- keys -------------------------------------------------------------------------------------------------------------


def test_without_a_key_the_answer_says_how_to_be_let_in(keyed: ToolService) -> None:
    """401 names the metadata of RFC 9728; the metadata needs no key and names /mcp and bearer headers."""
    status, headers, answer = post(keyed, call("whoami"))
    assert (status, answer["error"]["data"]["code"]) == (401, "UNAUTHORIZED")
    where = f"{keyed.url}{METADATA_PATH}"
    assert headers["www-authenticate"] == f'Bearer resource_metadata="{where}"'
    status, _, found = post(keyed, b"", METADATA_PATH, method="GET")
    assert (status, found["resource"]) == (200, f"{keyed.url}/mcp")
    assert found["bearer_methods_supported"] == ["header"]
    assert "authorization_servers" not in found
    assert post(keyed, b"", METADATA_PATH)[0] == 405


@pytest.mark.parametrize("version", [None, MODERN])
def test_with_a_key_any_host_is_served(keyed: ToolService, version: str | None) -> None:
    """The SDK's own check of Host and Origin is out of the way: ours has decided."""
    meta = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
    body = call("get", {"task_id": "1"})
    routing: dict[str, Any] = {}
    if version:
        body["params"]["_meta"] = meta
        routing = {"Mcp_Method": "tools/call", "Mcp_Name": "get", "MCP_Protocol_Version": version}
    status, _, answer = post(
        keyed, body, Host="tasks.example", Origin="https://app.example", Authorization=f"Bearer {KEY}", **routing
    )
    assert status == 200
    assert answer["result"]["structuredContent"]["task_id"] == "1"


@pytest.mark.parametrize("era", ERAS)
async def test_the_official_client_sends_a_key(keyed: ToolService, era: Any) -> None:
    """As a header of its HTTP client."""
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as carrier,
        Client(streamable_http_client(f"{keyed.url}/mcp", http_client=carrier), mode=era) as client,
    ):
        assert not (await client.call_tool("whoami", {})).is_error


# --- whatever comes ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
METHODS = st.sampled_from(
    ["initialize", "ping", "tools/list", "tools/call", "server/discover", "notifications/cancelled", "resources/read"]
)
ENVELOPE = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "id": st.integers() | st.text(max_size=5) | JSON,
        "method": METHODS | JSON,
        "params": JSON
        | st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["get", "echo", "claim"]) | JSON,
                "arguments": JSON,
                "_meta": st.just(ENVELOPE) | JSON,
                "requestId": JSON,
                "cursor": JSON,
                "protocolVersion": JSON,
            },
        ),
        "result": JSON,
        "error": JSON,
    },
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "MCP_Protocol_Version": st.sampled_from([*VERSIONS, MODERN, "odd", ""]),
        "Mcp_Session_Id": st.sampled_from(["x", "", "é"]),
        "Mcp_Method": st.sampled_from(["tools/call", "odd"]),
        "Mcp_Name": st.sampled_from(["get", "odd"]),
        "Last_Event_ID": st.just("7"),
    },
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60) | MESSAGES | JSON, headers=HEADERS)
def test_whatever_comes_no_mistake_is_made(service: ToolService, body: Any, headers: dict[str, str]) -> None:
    """Any bytes and any JSON, under any headers of the protocol: an answer below 500, and no traceback in the log."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    status, _, _ = post(service, raw, **sent)
    assert status < 500
    assert errors_of(service) == []


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ["auto", pytest.param("legacy", marks=pytest.mark.slow)])
async def test_a_service_that_stops_answers_those_who_wait(tmp_path: Path, era: Any) -> None:
    """SIGTERM ends it in good order: the waiting call is told to come again, and uvicorn has nothing to cut off."""
    with ToolService(tmp_path) as service:
        async with Client(f"{service.url}/mcp", mode=era) as client:
            waiting = asyncio.create_task(client.call_tool("wait", {"seconds": 60}))
            await asyncio.to_thread(service.process.wait_event, "wait_began")
            code = await asyncio.to_thread(service.stop)
            result = await waiting
    assert code == 0
    assert result.is_error
    assert result.structured_content is not None
    assert result.structured_content["code"] == "UNAVAILABLE"
    assert errors_of(service) == []


def test_the_sdk_is_loaded_by_the_first_request() -> None:
    """A service without MCP clients does not pay for it, in memory or at the start; nor for migrations or colours."""
    code = "import sys, dispatch.service.server; sys.exit(bool({'mcp', 'alembic', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
