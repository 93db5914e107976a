"""MCP against a client that shares no code with the server: its own protocol implementation, in another language."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dispatch.errors import LeaseHeldError
from tests.support.npm import run_node
from tests.support.tool_service import KEY, TOOLS, ToolService

if TYPE_CHECKING:
    from pathlib import Path

CALLS = [
    {"name": "get", "arguments": {"task_id": "7"}},
    {"name": "claim", "arguments": {"task_id": "7"}},
    {"name": "wait", "arguments": {"seconds": 0.5}},
    {"name": "get", "arguments": {"task_id": "8"}},
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "keys", [pytest.param(False, id="open", marks=pytest.mark.slow), pytest.param(True, id="keyed")]
)
def test_an_independent_client_lists_and_calls(tmp_path: Path, keys: bool) -> None:
    """It reads the same tools, the same results and the same refusal as the official one."""
    with ToolService(tmp_path, keys=keys) as service:
        env = {"MCP_KEY": KEY} if keys else {}
        found = json.loads(run_node("client.mjs", f"{service.url}/mcp", json.dumps(CALLS), env=env))
        assert service.process.find("tool_failed") == []
    assert found["server"]["name"] == "dispatch"
    assert "claim_next" in found["instructions"]
    assert [tool["name"] for tool in found["tools"]] == [tool["name"] for tool in TOOLS]
    assert found["tools"][0]["inputSchema"] == TOOLS[0]["inputSchema"]
    got, refused, waited, last = found["results"]
    wanted = LeaseHeldError("Task 7 is held by agent-1 until 12:00.", locked_by="agent-1", retry_after_ms=1500)
    assert got["structuredContent"] == {"task_id": "7", "assigned_to": None, "title": "Grüße, 世界"}
    assert (refused["isError"], refused["content"][0]["text"]) == (True, wanted.as_text())
    assert refused["structuredContent"] == wanted.as_body()
    assert waited["structuredContent"] == {"waited_s": 0.5}
    assert last["structuredContent"]["task_id"] == "8"
