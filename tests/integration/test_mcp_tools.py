"""The Task Tools themselves over MCP, by HTTP and by stdio, against the real service."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from mcp import Client, StdioServerParameters

from dispatch.service.mcp.server import INSTRUCTIONS
from dispatch.service.tools.registry import PROFILES, TOOLS
from tests.support.cli import Cli
from tests.support.promises import promised
from tests.support.service import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    Connect = Callable[..., AbstractAsyncContextManager[Client]]

AUTHOR, WORKER, OTHER = (str(uuid.uuid5(uuid.NAMESPACE_DNS, name)) for name in ("author", "worker", "other"))
WAYS = [("http", "auto"), ("http", "legacy"), ("stdio", "auto")]
OLD_STDIO = ("stdio", "legacy")
WAITING = pytest.mark.parametrize(
    "connect", [("http", "auto"), ("http", "legacy"), ("stdio", "auto")], indirect=True, ids="-".join
)
"""What waits by stdio in the older era as well is held by test_mcp_stdio.py."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The service as operators start it."""
    with ServiceProcess(tmp_path_factory.mktemp("tools"), DISPATCH_LOG_LEVEL="debug") as running:
        yield running


@pytest.fixture(params=[*WAYS, pytest.param(OLD_STDIO, marks=pytest.mark.slow)], ids="-".join)
def connect(request: pytest.FixtureRequest, service: ServiceProcess, tmp_path: Path) -> Connect:
    """Makes clients that have connected in one of the four ways."""
    carrier, era = request.param
    env = Cli(tmp_path, {"DISPATCH_ATS_URL": service.url}).env

    @asynccontextmanager
    async def made(profile: str = "default") -> AsyncIterator[Client]:
        argv = ["-m", "dispatch", "mcp", "--profile", profile]
        command = StdioServerParameters(command=sys.executable, args=argv, env=env)
        where: Any = f"{service.url}/mcp?profile={profile}" if carrier == "http" else command
        async with Client(where, mode=era) as client:
            yield client

    return made


async def call(client: Client, name: str, **arguments: Any) -> dict[str, Any]:
    """A call that must succeed; its result must keep the schema that was announced."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    jsonschema.validate(result.structured_content, dict(TOOLS[name].output))
    (block,) = result.content
    assert block.type == "text"
    assert json.loads(block.text) == result.structured_content
    return result.structured_content


async def created(client: Client, project: str, **fields: Any) -> str:
    """Create a task that is ready and return its id."""
    task = await call(
        client,
        "core_create_task",
        project_key=project,
        run_id=str(uuid.uuid4()),
        agent_id=AUTHOR,
        title="a task",
        status="todo",
        **fields,
    )
    return str(task["task_id"])


async def test_a_task_goes_from_creation_to_review(connect: Connect) -> None:
    """The way that the instructions describe works with no other knowledge than the answers."""
    project = f"p-{uuid.uuid4().hex[:8]}"
    async with connect() as client:
        task_id = await created(client, project)
        begun = await call(client, "claim_next", project_key=project, agent_id=WORKER, wait_s=5)
        assert (begun["claimed"], begun["task_id"]) == (True, task_id)
        late = await call(client, "core_claim_and_start_task", task_id=task_id, agent_id=OTHER)
        assert late["claimed"] is False
        where = {"task_id": task_id, "agent_id": WORKER, "lease_token": begun["lease_token"]}
        await call(client, "post_task_message", project_key=project, body="half way", **where)
        await call(client, "core_transition_task", to_status="in_review", note="done", **where)
        assert (await call(client, "core_get_task", task_id=task_id))["status"] == "in_review"
        refused = await client.call_tool("core_transition_task", {**where, "to_status": "backlog"})
        assert refused.is_error
        assert refused.structured_content is not None
        assert refused.structured_content["code"] in ("ILLEGAL_MOVE", "STALE_LEASE")


@WAITING
async def test_a_call_that_waits_is_woken_by_a_new_task(connect: Connect, service: ServiceProcess) -> None:
    """claim_next hears of a task that another client makes, at once."""
    project = f"p-{uuid.uuid4().hex[:8]}"
    async with connect() as client, Client(f"{service.url}/mcp") as author:
        await created(author, project, needs=["other"])
        waiting = asyncio.create_task(call(client, "claim_next", project_key=project, agent_id=WORKER, wait_s=50))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.5)
        task_id = await created(author, project)
        with promised(10, "the wake-up"):
            assert (await waiting)["task_id"] == task_id


@WAITING
async def test_a_wait_that_was_cancelled_takes_no_task(connect: Connect, service: ServiceProcess) -> None:
    """A client that took its claim_next back is not given the task that comes then."""
    project = f"p-{uuid.uuid4().hex[:8]}"
    async with connect() as client, Client(f"{service.url}/mcp") as author:
        await created(author, project, needs=["other"])
        before = len(service.process.find("call_cancelled"))
        waiting = asyncio.create_task(call(client, "claim_next", project_key=project, agent_id=WORKER, wait_s=60))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(service.process.wait_event, "call_cancelled", count=before + 1)
        task_id = await created(author, project)
        begun = await call(author, "claim_next", project_key=project, agent_id=OTHER, wait_s=5)
        assert (begun["claimed"], begun["task_id"]) == (True, task_id)


@pytest.mark.parametrize(
    ("connect", "profile"),
    [
        *((way, profile) for way in WAYS if way[0] == "http" for profile in PROFILES),
        (("stdio", "auto"), "worker"),
        (("stdio", "legacy"), "reader"),
    ],
    indirect=["connect"],
    ids=lambda word: "-".join(word) if isinstance(word, tuple) else word,
)
async def test_each_profile_lists_its_tools(connect: Connect, profile: str) -> None:
    """As the registry has them, in its order, by HTTP; by stdio, which asks by HTTP, those of the one it is told."""
    async with connect(profile) as client:
        assert tuple(tool.name for tool in (await client.list_tools()).tools) == PROFILES[profile]


def test_the_instructions_name_tools_that_exist_and_are_short() -> None:
    """Under 200 tokens, counted high at 3.5 letters each; every name in them is a tool or a word of the answers."""
    assert len(INSTRUCTIONS) / 3.5 < 200
    names = {word.strip(".;:,") for word in INSTRUCTIONS.split() if "_" in word}
    assert {name for name in names if name.islower()} - {"in_review", "lease_token"} <= set(TOOLS)
