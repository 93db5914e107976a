"""claim_next: what it offers, in which order, what wakes it, and that a cancelled call leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.service import leases, moves
from dispatch.service.rows import Ref
from dispatch.service.tools import claiming_next
from tests.support.promises import promised
from tests.support.tools import ANN, BOB, LOCK_S, REGRANT_S, VALIDATORS, ToolBench

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAKES_S = 60.0
"""Much longer than a wake-up takes, much shorter than the wait that it ends."""


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something that gives no sign has happened."""
    deadline = time.monotonic() + WAKES_S
    while not await is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def next_of(bench: ToolBench, agent: str = ANN, **arguments: Any) -> str | None:
    """claim_next without waiting: the task_id, or None."""
    found = await bench.call("claim_next", agent_id=agent, wait_s=0, **arguments)
    if not found["claimed"]:
        assert found["reason"] == "NOTHING_READY"
        assert all(found[part] for part in ("error", "why", "next"))
        return None
    assert (found["already_held"], found["task"]["status"], found["task"]["locked_by"]) == (False, "in_progress", agent)
    assert found["lease_token"] == found["task"]["lease_token"]
    return str(found["task_id"])


async def test_the_most_urgent_comes_first(bench: ToolBench) -> None:
    """Priority, then order_index with none last, then age; each task once, then NOTHING_READY at once."""
    ids = [
        await bench.create(priority=priority, order_index=order)
        for priority, order in (("none", 1), ("high", None), ("high", 2), ("urgent", None), ("high", 2), ("high", 1))
    ]
    found = [await next_of(bench) for _ in ids]
    assert found == [ids[n] for n in (3, 5, 2, 4, 1, 0)]
    with promised(2.0, "the answer"):
        assert await next_of(bench) is None


@pytest.mark.parametrize("status", ["backlog", "in_progress", "in_review", "completed", "blocked", "cancelled"])
async def test_only_todo_is_offered(bench: ToolBench, status: str) -> None:
    """Nothing of another status, nothing of another project, nothing that is locked."""
    await bench.put(status)
    await bench.create(project_key="elsewhere")
    await bench.claim(await bench.create(), BOB)
    assert await next_of(bench) is None


async def test_needs_must_all_be_capabilities(bench: ToolBench) -> None:
    """A task without needs suits everybody; one with needs only who has them all."""
    both = await bench.create(needs=["gpu", "net"], priority="urgent")
    gpu = await bench.create(needs=["gpu"], priority="high")
    free = await bench.create()
    assert await next_of(bench) == free
    assert await next_of(bench, capabilities=["net"]) is None
    assert await next_of(bench, capabilities=["gpu"]) == gpu
    assert await next_of(bench, capabilities=["GPU", "net"]) is None
    assert await next_of(bench, capabilities=["x", "net", "gpu"]) == both


async def test_the_assignee_gets_what_is_kept_for_it(bench: ToolBench) -> None:
    """Others are not offered it."""
    kept, free = await bench.create(assigned_to=BOB, priority="urgent"), await bench.create()
    assert await next_of(bench, ANN) == free
    assert await next_of(bench, ANN) is None
    assert await next_of(bench, BOB) == kept


async def test_channels_and_types_filter(bench: ToolBench) -> None:
    """One of the channels that are named; types are the ATS ones."""
    big = await bench.create(channel="big")
    await bench.create(channel="small", priority="urgent")
    assert await next_of(bench, channels=["other"]) is None
    assert await next_of(bench, channels=["other", "big"], types=["nothing"]) is None
    assert await next_of(bench, channels=["other", "big"], types=["task"]) == big


async def test_waiting_for_dependencies_is_not_offered(bench: ToolBench) -> None:
    """Only once all of them are completed; a cancelled one does not count."""
    first, second = await bench.create(), await bench.create(status="backlog")
    third = await bench.create(depends_on=[first, second], priority="urgent")
    assert await next_of(bench) == first
    for step in ("in_review", "completed"):
        await bench.move(first, step)
    await bench.move(second, "cancelled")
    assert await next_of(bench) is None
    await bench.move(second, "todo")
    await bench.complete(second)
    assert await next_of(bench) == third


async def test_the_lock_lasts_as_asked_and_the_note_is_kept(bench: ToolBench) -> None:
    """lease_s null has no end."""
    await bench.create()
    found = await bench.call("claim_next", wait_s=0, lease_s=None, note="mine")
    assert found["lock_expires_at"] is None
    assert "mine" in [line.get("note") for line in await bench.history(found["task_id"])]


async def test_many_agents_never_get_the_same_task(bench: ToolBench) -> None:
    """Twelve calls at once for eight tasks: each task once, four go away with nothing."""
    ids = {await bench.create() for _ in range(8)}
    found = await asyncio.gather(*(next_of(bench, f"00000000-0000-4000-8000-{n:012}") for n in range(12)))
    assert found.count(None) == 4
    assert {one for one in found if one} == ids


async def _finish(bench: ToolBench, ids: dict[str, str]) -> None:
    await bench.move(ids["first"], "in_review", BOB)
    await bench.move(ids["first"], "completed", BOB)


async def _by_ats(bench: ToolBench, ids: dict[str, str]) -> None:
    number = (await bench.get(ids["first"]))["id"]
    bob = Actor("agent", BOB, "Bob")
    await bench.store.write(lambda tx: moves.complete(tx, Ref(number), bob))


async def _expire(bench: ToolBench, _ids: dict[str, str]) -> None:
    bench.clock.step(LOCK_S + REGRANT_S)
    await bench.expire()


WAKERS: dict[str, Callable[[ToolBench, dict[str, str]], Awaitable[Any]]] = {
    "creation": lambda bench, _ids: bench.create(),
    "a graph": lambda bench, _ids: bench.call("create_graph", tasks=[{"ref": "a", "title": "t", "status": "todo"}]),
    "a move to todo": lambda bench, ids: bench.move(ids["backlog"], "todo", BOB),
    "completion of a dependency": _finish,
    "completion by an ATS client": _by_ats,
    "a lock that is let go": lambda bench, ids: bench.call(
        "core_release_task_lock", task_id=ids["locked"], agent_id=BOB
    ),
    "a lock that runs out": _expire,
    "a recovery": lambda bench, ids: bench.call(
        "core_recover_task", task_id=ids["locked"], agent_id=BOB, to_status="todo", note="x"
    ),
    "a new assignee": lambda bench, ids: bench.call(
        "core_update_task", task_id=ids["bobs"], agent_id=BOB, assigned_to=None
    ),
}
"""What makes a task ready for Ann where none was."""


@pytest.mark.parametrize("waker", WAKERS)
async def test_a_waiting_call_is_woken(bench: ToolBench, waker: str) -> None:
    """Whatever makes a task ready ends the wait at once."""
    ids = {
        "backlog": await bench.create(status="backlog"),
        "first": await bench.create(),
        "locked": await bench.create(),
        "bobs": await bench.create(assigned_to=BOB),
    }
    await bench.start(ids["first"], BOB)
    await bench.claim(ids["locked"], BOB)
    await bench.create(depends_on=[ids["first"]])
    call = asyncio.create_task(bench.call("claim_next", wait_s=200))
    await asyncio.sleep(0.1)  # long enough for the call to wait; were it not, the test would be easier, not wrong
    assert not call.done()
    await WAKERS[waker](bench, ids)
    async with asyncio.timeout(WAKES_S):
        assert (await call)["claimed"] is True


async def test_a_waiting_call_is_woken_when_a_pause_is_over(bench: ToolBench) -> None:
    """not_before needs no event: the call looks again when the first pause ends."""
    task_id = await bench.create()
    number = (await bench.get(task_id))["id"]
    worker = Actor("agent", "w", "W")
    await bench.store.write(lambda tx: leases.claim(tx, Ref(number), worker, lease_ms=60_000))
    await bench.store.write(lambda tx: leases.release(tx, Ref(number), worker, token=1, delay_ms=600))
    call = asyncio.create_task(bench.call("claim_next", wait_s=200))
    await asyncio.sleep(0.05)
    assert not call.done()
    bench.clock.step(0.6)
    async with asyncio.timeout(WAKES_S):
        assert (await call)["task_id"] == task_id


async def test_what_is_not_for_me_does_not_end_the_wait(bench: ToolBench) -> None:
    """Another project's, another agent's and an impossible task leave the call waiting to its end."""
    await bench.create(status="backlog")
    began = time.monotonic()
    call = asyncio.create_task(bench.call("claim_next", wait_s=1))
    await bench.create(project_key="elsewhere")
    await bench.create(assigned_to=BOB)
    await bench.create(needs=["gpu"])
    found = await call
    assert (found["claimed"], found["reason"]) == (False, "NOTHING_READY")
    assert 0.9 < time.monotonic() - began < WAKES_S


async def test_one_task_wakes_many_and_one_gets_it(bench: ToolBench) -> None:
    """The others go on waiting and get the later ones."""
    await bench.create(status="backlog")
    agents = [f"00000000-0000-4000-8000-{n:012}" for n in range(6)]
    calls = [asyncio.create_task(bench.call("claim_next", agent_id=agent, wait_s=200)) for agent in agents]
    ids = set()
    for _ in agents:
        ids.add(await bench.create())
        await asyncio.sleep(0.01)
    async with asyncio.timeout(WAKES_S):
        results = await asyncio.gather(*calls)
    assert {result["task_id"] for result in results} == ids


async def test_progress_is_told_while_waiting(bench: ToolBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, with rising values."""
    monkeypatch.setattr(claiming_next, "_PROGRESS_S", 0.1)
    await bench.create(status="backlog")
    told: list[tuple[float, float | None]] = []
    third = asyncio.Event()

    async def progress(done: float, total: float | None, message: str) -> None:
        told.append((done, total))
        assert message
        if len(told) == 3:
            third.set()

    arguments = bench.full("claim_next", {"wait_s": 100})
    call = asyncio.create_task(bench.box.call("claim_next", arguments, bench.caller, progress))
    async with asyncio.timeout(WAKES_S):
        await third.wait()
    await bench.create()
    result = await call
    VALIDATORS["claim_next"].validate(result)
    assert 0.1 <= told[0][0] < told[1][0] < told[2][0] <= 100
    assert {total for _, total in told} == {100}


async def test_a_cancelled_wait_leaves_nothing(bench: ToolBench) -> None:
    """A call that ends while it waits begins nothing later, and listens no more."""
    await bench.create(status="backlog")
    call = asyncio.create_task(bench.call("claim_next", wait_s=200))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert call.cancelled()
    task_id = await bench.create()
    await asyncio.sleep(0.1)
    assert (await bench.get(task_id))["locked_by"] is None
    assert not bench.box._news._waiting


@pytest.mark.parametrize("turns", range(12))
async def test_a_call_that_is_cancelled_at_any_moment_holds_no_task(bench: ToolBench, turns: int) -> None:
    """Cancelled after any number of turns of the loop, either the client has the answer or nobody has the task."""
    task_id = await bench.create()
    call = asyncio.create_task(bench.call("claim_next", wait_s=200))
    for _ in range(turns * 3):
        await asyncio.sleep(0.0005 if turns > 5 else 0)
    call.cancel()
    (result,) = await asyncio.gather(call, return_exceptions=True)
    if isinstance(result, dict):
        assert (await bench.get(task_id))["locked_by"] == ANN
        return

    async def is_settled() -> bool:
        return not claiming_next._giving_back

    await until(is_settled)
    task = await bench.get(task_id)
    assert (task["status"], task["locked_by"], task["attempts"]) == ("todo", None, 0)
    assert await next_of(bench, BOB) == task_id


async def test_a_grant_whose_caller_is_gone_is_given_back(bench: ToolBench) -> None:
    """Cancelled while the grant is being written, the task goes back to todo, uncounted, and another may have it."""
    task_id = await bench.create()
    inside, go = asyncio.Event(), asyncio.Event()
    write = bench.store.write

    async def slow(work: Any) -> Any:
        inside.set()
        await go.wait()
        return await write(work)

    bench.store.write = slow  # type: ignore[method-assign]
    call = asyncio.create_task(bench.call("claim_next", wait_s=200))
    await inside.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    bench.store.write = write  # type: ignore[method-assign]
    go.set()

    async def is_released() -> bool:
        return bool((await bench.history(task_id))[-1]["event"] == "released")

    await until(is_released)
    task = await bench.get(task_id)
    assert (task["status"], task["locked_by"], task["attempts"], task["lease_token"]) == ("todo", None, 0, 1)
    assert await next_of(bench, BOB) == task_id
