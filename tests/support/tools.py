"""The Task Tools on a store of this process, with every answer checked against what the tool promises."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from dispatch.ats.model import Actor
from dispatch.errors import TaskError
from dispatch.service import lapse
from dispatch.service.access import Caller
from dispatch.service.tools.registry import TOOLS, LocalToolbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.store import Store
    from tests.support.service import SteppingClock

ANN, BOB, EVE = (str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in ("ann", "bob", "eve"))
"""Three agents. Eve is a person when her calls come from ``HUMAN``."""
RUN = str(uuid.uuid5(uuid.NAMESPACE_OID, "run"))
NOBODY = str(uuid.uuid5(uuid.NAMESPACE_OID, "nobody"))
"""A UUID that is nobody's and nothing's."""
PROJECT = "proj"
"""For tests that need no project of their own."""
LOCK_S = 3_600
REGRANT_S = 15

DEFAULTS: dict[str, Any] = {"run_id": RUN, "title": "a task", "agent_id": ANN}
"""What a test does not say, besides the project."""

VALIDATORS = {name: Draft202012Validator(dict(tool.output)) for name, tool in TOOLS.items()}

WAY = {
    "backlog": (),
    "todo": ("todo",),
    "in_progress": ("todo", "in_progress"),
    "in_review": ("todo", "in_progress", "in_review"),
    "completed": ("todo", "in_progress", "in_review", "completed"),
    "failed": ("todo", "in_progress", "failed"),
    "blocked": ("todo", "blocked"),
    "cancelled": ("cancelled",),
    "skipped": ("skipped",),
}
"""Legal moves that lead from backlog to each status."""


class ToolBench:
    """A store, a clock that stands still, and the tools as coroutines on a project that no other bench has."""

    def __init__(self, store: Store, clock: SteppingClock) -> None:
        self.store = store
        self.clock = clock
        self.box = LocalToolbox(store, lock_ms=LOCK_S * 1000)
        self.caller = Caller(Actor("agent", "tester", "Tester"))
        self.project = f"p-{uuid.uuid4().hex}"

    def full(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with the required ones that the test left out."""
        defaults = {**DEFAULTS, "project_key": self.project}
        missing = {key: defaults[key] for key in TOOLS[name].required if key in defaults and key not in arguments}
        return {**missing, **arguments}

    async def call(self, name: str, *, caller: Caller | None = None, **arguments: Any) -> dict[str, Any]:
        """Call a tool, which must succeed with a result that its output schema allows."""
        result = await self.box.call(name, self.full(name, arguments), caller or self.caller)
        VALIDATORS[name].validate(result)
        return result

    async def refused(self, code: str, name: str, *, caller: Caller | None = None, **arguments: Any) -> dict[str, Any]:
        """Call a tool, which must refuse with ``code``; return the refusal's body."""
        with pytest.raises(TaskError) as caught:
            await self.box.call(name, self.full(name, arguments), caller or self.caller)
        body = caught.value.as_body()
        assert body["code"] == code, body
        assert all(body[part] for part in ("error", "why", "next"))
        return body

    async def create(self, **arguments: Any) -> str:
        """Create a task (in todo unless said otherwise) and return its task_id."""
        return str((await self.call("core_create_task", **{"status": "todo", **arguments}))["task_id"])

    async def get(self, task_id: str) -> dict[str, Any]:
        """Return the task."""
        return await self.call("core_get_task", task_id=task_id)

    async def claim(self, task_id: str, agent: str = ANN, **arguments: Any) -> dict[str, Any]:
        """core_claim_task, which must win."""
        result = await self.call("core_claim_task", task_id=task_id, agent_id=agent, **arguments)
        assert result["claimed"] is True, result
        return result

    async def start(self, task_id: str, agent: str = ANN, **arguments: Any) -> dict[str, Any]:
        """core_claim_and_start_task, which must win."""
        result = await self.call("core_claim_and_start_task", task_id=task_id, agent_id=agent, **arguments)
        assert result["claimed"] is True, result
        return result

    async def move(self, task_id: str, to: str, agent: str = ANN, **arguments: Any) -> dict[str, Any]:
        """core_transition_task, which must succeed."""
        return await self.call("core_transition_task", task_id=task_id, to_status=to, agent_id=agent, **arguments)

    async def put(self, status: str, agent: str = ANN, *, locked: bool = False) -> str:
        """Return a task that ``agent`` brought into ``status`` by legal moves, unlocked unless said otherwise."""
        task_id = await self.create(status="backlog")
        for step in WAY[status]:
            await self.move(task_id, step, agent, release_lock=True)
        if locked:
            await self.claim(task_id, agent)
        return task_id

    async def complete(self, task_id: str, agent: str = ANN) -> None:
        """Take a task from todo to completed."""
        await self.start(task_id, agent)
        await self.move(task_id, "in_review", agent)
        await self.move(task_id, "completed", agent)

    async def history(self, task_id: str) -> list[dict[str, Any]]:
        """Return the task's history."""
        return list((await self.call("task_history", task_id=task_id, limit=200))["events"])

    async def expire(self) -> None:
        """Let the clock take back what ran out."""
        await self.store.write(lambda tx: lapse.expire(tx, REGRANT_S * 1000))

    @contextlib.asynccontextmanager
    async def untouched(self, task_id: str) -> AsyncIterator[None]:
        """Assert that the block changes nothing about the task."""
        before, lines = await self.get(task_id), await self.history(task_id)
        yield
        assert await self.get(task_id) == before
        assert await self.history(task_id) == lines
