"""claim_next: wait for the most urgent task that the agent can do, and begin it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from dispatch.service import locks, offers
from dispatch.service.fields import NAME_CHARS_MAX
from dispatch.service.rows import OWN_WORDS, Ref
from dispatch.service.strict import label
from dispatch.service.tools import params as p
from dispatch.service.tools.locking import CLAIM_OUTPUT, LEASE_S, claimed
from dispatch.service.tools.model import Param, Tool
from dispatch.service.tools.reading import known_project

if TYPE_CHECKING:
    from dispatch.service.store import Tx
    from dispatch.service.tools.model import Call

WAIT_S: Final = 50
WAIT_S_MAX: Final = 240
_PROGRESS_S: Final = 5.0
_PAUSE_S: Final = 0.05
"""A busy project must not make every waiting call look after each event."""

_giving_back: set[asyncio.Task[Any]] = set()
"""Keeps what undoes a cancelled claim alive until it is done."""


async def claim_next(call: Call) -> dict[str, Any]:
    """Wait for a task and begin it."""
    found, actor = call.arguments, call.actor()
    project = await call.store.read(lambda tx: known_project(tx, call, found["project_key"]))
    taste = offers.Taste(project, *(found.get(name, ()) for name in ("channels", "types", "capabilities")))
    wait_s = float(found.get("wait_s", WAIT_S))
    began = told = time.monotonic()
    with call.news.of(project) as news:
        while True:
            news.clear()
            due = await call.store.read(lambda tx: offers.next_at(tx, taste, actor))
            if due == 0:
                begun = await _begin(call, taste)
                if begun is not None:
                    return begun
            now = time.monotonic()
            left = began + wait_s - now
            if left <= 0:
                return _nothing(wait_s)
            pause = min(left, max(_PAUSE_S, told + _PROGRESS_S - now))
            if due:
                pause = min(pause, max(_PAUSE_S, (due - call.store.clock.now_ms()) / 1000))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await news.wait()
                    await asyncio.sleep(min(_PAUSE_S, left))
            if time.monotonic() - told >= _PROGRESS_S:
                told = time.monotonic()
                await call.progress(min(told - began, wait_s), wait_s, "Waiting for a task that is ready.")


async def _begin(call: Call, taste: offers.Taste) -> dict[str, Any] | None:
    """Begin the next task; when the call is cancelled meanwhile, nobody keeps a task that no client knows of."""
    actor, lease_ms, note = call.actor(), call.lease_ms(), call.arguments.get("note")

    def work(tx: Tx) -> dict[str, Any] | None:
        granted = offers.begin_next(tx, taste, actor, lease_ms=lease_ms, note=note)
        return None if granted is None else claimed(tx, granted, already_held=False)

    begun = asyncio.ensure_future(call.store.write(work))
    try:
        return await asyncio.shield(begun)
    except asyncio.CancelledError:
        undo = asyncio.create_task(_give_back(call, begun))
        _giving_back.add(undo)
        undo.add_done_callback(_giving_back.discard)
        raise


async def _give_back(call: Call, begun: asyncio.Future[dict[str, Any] | None]) -> None:
    result = await begun
    if result is None:
        return
    ref, token = Ref(result["task_id"], words=OWN_WORDS), result["lease_token"]
    await call.store.write(lambda tx: locks.give_up(tx, ref, call.actor(), token, "The call was cancelled."))


def _nothing(wait_s: float) -> dict[str, Any]:
    return {
        "claimed": False,
        "reason": "NOTHING_READY",
        "error": f"No task that fits became ready within {wait_s:g} s.",
        "why": "Tasks are offered when they are in todo, unlocked, not kept for another agent, their dependencies"
        " completed, and their needs among your capabilities.",
        "next": "Call again to go on waiting; core_list_tasks and explain show what stands in the way.",
    }


_NAMES: Final = p.each(Param(label(NAME_CHARS_MAX), {"type": "string"}), 64)

TOOLS: Final = (
    Tool(
        name="claim_next",
        title="Wait for the next task and start it",
        description="Lock and start the most urgent ready task of a project, waiting up to wait_s for one. Only tasks"
        " whose needs are all among capabilities. Answers as core_claim_and_start_task; after the wait claimed=false,"
        " reason NOTHING_READY: call again.",
        run=claim_next,
        params={
            "project_key": p.PROJECT,
            "agent_id": p.UUID,
            "capabilities": _NAMES,
            "channels": _NAMES,
            "types": _NAMES,
            "wait_s": p.whole(0, WAIT_S_MAX, WAIT_S),
            "lease_s": LEASE_S,
            "note": p.NOTE,
        },
        required=("project_key", "agent_id"),
        output=CLAIM_OUTPUT,
    ),
)
