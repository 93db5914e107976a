"""The lock and the moves of the Task Tools, on every store. Every answer is checked against its output schema."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from dispatch.ats.model import Actor
from dispatch.core.lifecycle import FINISHED, MOVES, Status
from dispatch.errors import StaleLeaseError
from dispatch.service import leases
from dispatch.service.access import Caller, agent_uuid
from dispatch.service.rows import Ref
from tests.support.tools import ANN, BOB, EVE, LOCK_S, NOBODY, REGRANT_S, ToolBench

pytestmark = pytest.mark.asyncio(loop_scope="module")

PEOPLE = [Actor("human", "eve", "Eve"), Actor("system", "cron", "Cron")]
STATES = [state.value for state in Status]
UNFINISHED = [state.value for state in Status if state not in FINISHED]
ENDED = [state.value for state in Status if state in FINISHED]


# --- core_claim_task -------------------------------------------------------------------------------------------------


async def test_a_claim_locks_and_leaves_the_status(bench: ToolBench) -> None:
    """The winner is shown with its token and expiry; the task stays where it was and is written to the history."""
    task_id = await bench.create(status="backlog")
    won = await bench.claim(task_id, note="mine")
    task = await bench.get(task_id)
    assert (won["already_held"], won["lease_token"], won["task_id"]) == (False, 1, task_id)
    assert won["task"] == task
    assert (task["status"], task["locked_by"], task["lease_token"]) == ("backlog", ANN, 1)
    assert task["lock_expires_at"] == won["lock_expires_at"]
    last = (await bench.history(task_id))[-1]
    assert (last["event"], last["agent_id"], last["note"], last["lease_token"]) == ("locked", ANN, "mine", 1)
    assert "to" not in last


@pytest.mark.parametrize("status", UNFINISHED)
async def test_an_unfinished_task_can_be_locked_in_every_status(bench: ToolBench, status: str) -> None:
    """Unlocked, it is locked where it stands; the token grows by one with every lock."""
    task_id = await bench.put(status)
    before = await bench.get(task_id)
    won = await bench.claim(task_id, BOB)
    assert won["task"]["status"] == status
    assert won["lease_token"] == before["lease_token"] + 1


@pytest.mark.parametrize("status", ENDED)
@pytest.mark.parametrize("tool", ["core_claim_task", "core_claim_and_start_task"])
async def test_a_finished_task_cannot_be_claimed(bench: ToolBench, tool: str, status: str) -> None:
    """The answer is claimed=false with ILLEGAL_MOVE and the status, and nothing changes."""
    task_id = await bench.put(status)
    async with bench.untouched(task_id):
        lost = await bench.call(tool, task_id=task_id)
    assert (lost["claimed"], lost["reason"], lost["status"]) == (False, "ILLEGAL_MOVE", status)
    assert (lost["task_id"], bool(lost["error"])) == (task_id, True)
    assert lost["allowed"] == sorted(MOVES[Status(status)])
    assert tool == "core_claim_and_start_task" or "move it to todo" in lost["next"]


@pytest.mark.parametrize("status", [status for status in UNFINISHED if status != "todo"])
async def test_claim_and_start_begins_from_todo_only(bench: ToolBench, status: str) -> None:
    """From every other status it answers claimed=false with ILLEGAL_MOVE and changes nothing."""
    task_id = await bench.put(status)
    async with bench.untouched(task_id):
        lost = await bench.call("core_claim_and_start_task", task_id=task_id)
    assert (lost["claimed"], lost["reason"], lost["status"]) == (False, "ILLEGAL_MOVE", status)
    assert ("core_claim_task takes its lock" in lost["next"]) == (status == "in_progress")


@pytest.mark.parametrize("tool", ["core_claim_task", "core_claim_and_start_task"])
async def test_a_loser_is_told_who_until_when_and_when_to_try_again(bench: ToolBench, tool: str) -> None:
    """claimed=false, LEASE_HELD, with the holder, both times and retry_after_ms."""
    task_id = await bench.create()
    won = await bench.call(tool, task_id=task_id, agent_id=ANN, lease_s=600)
    bench.clock.step(100)
    async with bench.untouched(task_id):
        lost = await bench.call(tool, task_id=task_id, agent_id=BOB)
    assert (lost["claimed"], lost["reason"]) == (False, "LEASE_HELD")
    assert (lost["locked_by"], lost["holder"]) == (ANN, ANN)
    assert lost["locked_since"] == won["task"]["locked_since"]
    assert lost["lease_expires"] == won["lock_expires_at"]
    assert lost["retry_after_ms"] == 500_000


async def test_a_lock_without_end_names_no_time(bench: ToolBench) -> None:
    """lease_s=null never runs out, however long one waits, and says so."""
    task_id = await bench.create()
    assert (await bench.claim(task_id, lease_s=None))["lock_expires_at"] is None
    bench.clock.step(10**8)
    await bench.expire()
    lost = await bench.call("core_claim_task", task_id=task_id, agent_id=BOB)
    assert (lost["reason"], lost["lease_expires"], lost["retry_after_ms"]) == ("LEASE_HELD", None, None)


@pytest.mark.parametrize("tool", ["core_claim_task", "core_claim_and_start_task"])
async def test_the_holder_that_claims_again_keeps_its_token(bench: ToolBench, tool: str) -> None:
    """already_held=true, the same token, the lock extended from now; the history has no second claim."""
    task_id = await bench.create()
    first = await bench.call(tool, task_id=task_id)
    lines = await bench.history(task_id)
    bench.clock.step(1_000)
    again = await bench.call(tool, task_id=task_id)
    assert (again["claimed"], again["already_held"]) == (True, True)
    assert again["lease_token"] == first["lease_token"]
    assert again["lock_expires_at"] > first["lock_expires_at"]
    assert again["task"]["attempts"] == first["task"]["attempts"]
    assert await bench.history(task_id) == lines


@pytest.mark.parametrize("status", ["backlog", "todo", "blocked"])
async def test_open_dependencies_refuse_a_lock(bench: ToolBench, status: str) -> None:
    """claimed=false, NOT_READY, with each open dependency and its status; completion of all lifts it."""
    first, second = await bench.create(), await bench.create(status="backlog")
    task_id = await bench.create(status="todo" if status == "blocked" else status, depends_on=[first, second])
    if status == "blocked":
        await bench.move(task_id, "blocked")
    async with bench.untouched(task_id):
        lost = await bench.call("core_claim_task", task_id=task_id)
    assert (lost["claimed"], lost["reason"]) == (False, "NOT_READY")
    assert [(one["task_id"], one["status"]) for one in lost["waits_for"]] == [(first, "todo"), (second, "backlog")]
    await bench.complete(first)
    await bench.move(second, "todo")
    await bench.complete(second)
    await bench.claim(task_id)


async def test_open_dependencies_refuse_a_start_in_every_way(bench: ToolBench) -> None:
    """Neither claim-and-start nor the move to in_progress begins a task that waits."""
    first = await bench.create()
    task_id = await bench.create(depends_on=[first])
    async with bench.untouched(task_id):
        assert (await bench.call("core_claim_and_start_task", task_id=task_id))["reason"] == "NOT_READY"
        body = await bench.refused("NOT_READY", "core_transition_task", task_id=task_id, to_status="in_progress")
    assert body["waits_for"][0]["task_id"] == first


async def test_a_pause_refuses_until_it_is_over(bench: ToolBench) -> None:
    """Released with a delay, a task answers NOT_READY with the time left, and can be claimed after it."""
    task_id = await bench.create()
    number = (await bench.get(task_id))["id"]
    worker = Actor("agent", ANN, "Ann")
    await bench.store.write(lambda tx: leases.claim(tx, Ref(number), worker, lease_ms=60_000))
    await bench.store.write(lambda tx: leases.release(tx, Ref(number), worker, token=1, delay_ms=5_000))
    for tool in ("core_claim_task", "core_claim_and_start_task"):
        lost = await bench.call(tool, task_id=task_id)
        assert (lost["claimed"], lost["reason"], lost["retry_after_ms"]) == (False, "NOT_READY", 5_000)
        assert lost["not_before"] == (await bench.get(task_id))["not_before"]
    bench.clock.step(5)
    await bench.start(task_id)


async def test_a_task_with_an_assignee_is_kept_for_it(bench: ToolBench) -> None:
    """Others get claimed=false with ASSIGNED_ELSEWHERE and the assignee; the assignee gets the lock."""
    task_id = await bench.create(assigned_to=BOB)
    async with bench.untouched(task_id):
        for tool in ("core_claim_task", "core_claim_and_start_task"):
            lost = await bench.call(tool, task_id=task_id, agent_id=ANN)
            assert (lost["claimed"], lost["reason"], lost["assigned_to"]) == (False, "ASSIGNED_ELSEWHERE", BOB)
        await bench.refused("ASSIGNED_ELSEWHERE", "core_transition_task", task_id=task_id, to_status="in_progress")
    await bench.start(task_id, BOB)


@pytest.mark.parametrize("tool", ["core_claim_task", "core_claim_and_start_task"])
async def test_of_many_claimers_one_wins(bench: ToolBench, tool: str) -> None:
    """Sixteen agents at once: one winner, fifteen losers who are told its name, and a token that grew by one."""
    task_id = await bench.create()
    agents = [str(uuid.uuid4()) for _ in range(16)]
    results = await asyncio.gather(*(bench.call(tool, task_id=task_id, agent_id=agent) for agent in agents))
    winners = [agent for agent, result in zip(agents, results, strict=True) if result["claimed"]]
    assert len(winners) == 1
    assert {result["locked_by"] for result in results if not result["claimed"]} == set(winners)
    assert (await bench.get(task_id))["lease_token"] == 1


async def test_claim_and_start_does_both_or_neither(bench: ToolBench) -> None:
    """Status, lock, attempt and start time change together; the history has claim and start with their notes."""
    task_id = await bench.create()
    task = (await bench.start(task_id, claim_note="taking", start_note="going"))["task"]
    assert (task["status"], task["locked_by"], task["attempts"]) == ("in_progress", ANN, 1)
    assert task["started_at"] is not None
    claimed, started = (await bench.history(task_id))[-2:]
    assert (claimed["event"], claimed["from"], claimed["to"]) == ("claimed", "todo", "in_progress")
    assert (claimed["note"], started["event"], started["note"]) == ("taking", "started", "going")


async def test_a_lock_taken_before_is_kept_by_the_start(bench: ToolBench) -> None:
    """Lock first, start later: the same token, one attempt."""
    task_id = await bench.create()
    token = (await bench.claim(task_id))["lease_token"]
    begun = await bench.start(task_id)
    assert (begun["lease_token"], begun["already_held"], begun["task"]["status"]) == (token, False, "in_progress")
    assert begun["task"]["attempts"] == 1


# --- the length of a lock --------------------------------------------------------------------------------------------


async def test_a_lock_lasts_its_length_from_the_holders_last_call(bench: ToolBench) -> None:
    """Claim, move, update and message of the holder each extend it by its own length; reading does not."""
    task_id = await bench.create()
    await bench.claim(task_id, lease_s=100)

    async def left() -> float:
        task = await bench.get(task_id)
        won = await bench.call("core_claim_task", task_id=task_id, agent_id=BOB)
        assert won["lease_expires"] == task["lock_expires_at"]
        return float(won["retry_after_ms"]) / 1000

    calls: list[tuple[str, dict[str, Any]]] = [
        ("core_update_task", {"priority": "high"}),
        ("post_task_message", {"body": "working"}),
        ("core_transition_task", {"to_status": "in_progress"}),
        ("core_transition_task", {"to_status": "blocked"}),
    ]
    for name, arguments in calls:
        bench.clock.step(60)
        assert await left() == 40
        await bench.call(name, task_id=task_id, **arguments)
        assert await left() == 100, name
    bench.clock.step(60)
    for name in ("core_get_task", "task_history", "explain", "unblocks", "list_task_messages"):
        await bench.call(name, task_id=task_id)
    await bench.call("core_update_task", task_id=task_id, agent_id=BOB, priority="low")
    assert await left() == 40


async def test_the_default_length_is_an_hour(bench: ToolBench) -> None:
    """Every way to get a lock without naming a length gives the setting's."""
    for name in ("core_claim_task", "core_claim_and_start_task", "core_transition_task", "claim_next"):
        arguments: dict[str, Any] = {} if name == "claim_next" else {"task_id": await bench.create()}
        if name == "core_transition_task":
            arguments["to_status"] = "in_progress"
        if name == "claim_next":
            await bench.create(priority="urgent")
        task_id = (await bench.call(name, **arguments))["task_id"]
        assert (await bench.call("core_claim_task", task_id=task_id, agent_id=BOB))["retry_after_ms"] == LOCK_S * 1000


@pytest.mark.parametrize("lease_s", [60, None])
async def test_a_move_to_in_progress_keeps_the_length_of_the_lock(bench: ToolBench, lease_s: int | None) -> None:
    """A holder that starts by a move does not get the default length instead of its own."""
    task_id = await bench.create()
    await bench.claim(task_id, lease_s=lease_s)
    await bench.move(task_id, "in_progress")
    lost = await bench.call("core_claim_task", task_id=task_id, agent_id=BOB)
    assert lost["retry_after_ms"] == (None if lease_s is None else lease_s * 1000)


@pytest.mark.parametrize("status", UNFINISHED)
async def test_a_lock_that_runs_out_lets_go(bench: ToolBench, status: str) -> None:
    """After its length and the regrant delay in_progress goes back to todo; elsewhere the lock is just gone."""
    task_id = await bench.put(status, locked=True)
    bench.clock.step(LOCK_S + REGRANT_S - 1)
    await bench.expire()
    assert (await bench.get(task_id))["locked_by"] == ANN
    bench.clock.step(1)
    await bench.expire()
    task = await bench.get(task_id)
    assert (task["locked_by"], task["lock_expires_at"]) == (None, None)
    assert task["status"] == ("todo" if status == "in_progress" else status)
    assert (await bench.history(task_id))[-1]["event"] == ("lease_expired" if status == "in_progress" else "unlocked")
    assert (await bench.claim(task_id, BOB))["lease_token"] == task["lease_token"] + 1


@pytest.mark.parametrize(
    ("lease_s", "good"),
    [(1, True), (86_400, True), (5.0, True), (None, True), (0, False), (86_401, False), (1.5, False), ("60", False)],
)
async def test_lease_s_has_bounds(bench: ToolBench, lease_s: Any, good: bool) -> None:
    """One second to one day, whole, or null."""
    task_id = await bench.create()
    for name in ("core_claim_task", "core_claim_and_start_task"):
        if good:
            assert (await bench.call(name, task_id=task_id, lease_s=lease_s))["claimed"]
        else:
            await bench.refused("INVALID", name, task_id=task_id, lease_s=lease_s)
    if not good:
        await bench.refused("INVALID", "claim_next", lease_s=lease_s)


# --- core_transition_task --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATES)
async def test_exactly_the_28_moves_are_possible(bench: ToolBench, status: str) -> None:
    """From each status the moves of the page succeed and are in the history with their note; others change nothing."""
    for target in STATES:
        task_id = await bench.put(status)
        if Status(target) in MOVES[Status(status)]:
            moved = await bench.move(task_id, target, note="because")
            assert moved["status"] == target
            lines = [line for line in await bench.history(task_id) if line.get("to") and line["event"] != "started"]
            assert (lines[-1]["from"], lines[-1]["to"]) == (status, target)
            assert "because" in lines[-1]["note"]
            assert lines[-1]["agent_id"] == ANN
        else:
            async with bench.untouched(task_id):
                body = await bench.refused("ILLEGAL_MOVE", "core_transition_task", task_id=task_id, to_status=target)
            assert body["status"] == status
            assert body["allowed"] == sorted(MOVES[Status(status)])


@pytest.mark.parametrize("status", UNFINISHED)
async def test_another_agents_lock_refuses_all_moves_but_cancelled(bench: ToolBench, status: str) -> None:
    """LEASE_HELD with the holder for legal moves, ILLEGAL_MOVE for the others, and cancelled for everybody."""
    task_id = await bench.put(status, locked=True)
    async with bench.untouched(task_id):
        for target in STATES:
            if target == "cancelled":
                continue
            legal = Status(target) in MOVES[Status(status)]
            body = await bench.refused(
                "LEASE_HELD" if legal else "ILLEGAL_MOVE",
                "core_transition_task",
                task_id=task_id,
                to_status=target,
                agent_id=BOB,
            )
            assert body.get("locked_by") == (ANN if legal else None)
    cancelled = await bench.move(task_id, "cancelled", BOB)
    assert (cancelled["status"], cancelled["locked_by"]) == ("cancelled", None)


@pytest.mark.parametrize("actor", PEOPLE, ids=lambda actor: actor.type)
@pytest.mark.parametrize("status", UNFINISHED)
async def test_people_and_systems_may_move_a_locked_task(bench: ToolBench, status: str, actor: Actor) -> None:
    """A live lock of an agent does not keep them from any move, except to begin it in the holder's place."""
    for target in sorted(MOVES[Status(status)]):
        task_id = await bench.put(status, locked=True)
        arguments = {"task_id": task_id, "to_status": target, "agent_id": agent_uuid(actor.type, actor.id)}
        if target == "in_progress":
            await bench.refused("LEASE_HELD", "core_transition_task", caller=Caller(actor), **arguments)
        else:
            moved = await bench.call("core_transition_task", caller=Caller(actor), **arguments)
            assert (moved["status"], moved["locked_by"]) == (target, None)


@pytest.mark.parametrize("status", UNFINISHED)
async def test_the_token_stands_for_the_holder(bench: ToolBench, status: str) -> None:
    """Whoever hands the live token may make every move, and keeps the lock as the holder would."""
    for target in sorted(MOVES[Status(status)]):
        task_id = await bench.put(status, locked=True)
        token = (await bench.get(task_id))["lease_token"]
        moved = await bench.move(task_id, target, BOB, lease_token=token)
        assert moved["status"] == target
        assert moved["locked_by"] == (None if Status(target) in FINISHED else ANN)
        assert moved["lease_token"] == token


async def test_a_token_that_is_not_the_live_ones_is_stale(bench: ToolBench) -> None:
    """STALE_LEASE on every tool that takes one, for the holder too, whether the lock is another or gone."""
    task_id = await bench.create()
    await bench.claim(task_id)
    for token in (1, 0, 7, 2**63 - 1):
        if token == 1:
            await bench.call("core_release_task_lock", task_id=task_id)
        async with bench.untouched(task_id):
            for name, arguments in (
                ("core_transition_task", {"to_status": "in_progress"}),
                ("core_transition_task", {"to_status": "cancelled"}),
                ("core_update_task", {"priority": "high"}),
                ("core_release_task_lock", {}),
                ("post_task_message", {"body": "x"}),
            ):
                await bench.refused("STALE_LEASE", name, task_id=task_id, lease_token=token, **arguments)
        if token == 1:
            assert (await bench.claim(task_id))["lease_token"] == 2


async def test_an_unlocked_task_may_be_moved_by_anybody(bench: ToolBench) -> None:
    """Without a lock no agent is in the way, also in in_progress."""
    task_id = await bench.put("in_progress")
    assert (await bench.move(task_id, "in_review", BOB))["status"] == "in_review"


async def test_a_wrong_expected_status_is_refused_first(bench: ToolBench) -> None:
    """UNEXPECTED_STATUS with the real one, before legality, lock and token are looked at."""
    task_id = await bench.put("todo", locked=True)
    async with bench.untouched(task_id):
        for to, extra in (("in_progress", {}), ("completed", {}), ("in_progress", {"lease_token": 99})):
            body = await bench.refused(
                "UNEXPECTED_STATUS",
                "core_transition_task",
                task_id=task_id,
                to_status=to,
                expected_from_status="backlog",
                agent_id=BOB,
                **extra,
            )
            assert body["status"] == "todo"
    assert (await bench.move(task_id, "in_progress", expected_from_status="todo"))["status"] == "in_progress"


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("status", UNFINISHED)
async def test_a_holder_keeps_its_lock_unless_it_lets_go(bench: ToolBench, status: str, release: bool) -> None:
    """After each move the holder has the lock and token still, unless release_lock or the task is finished."""
    for target in sorted(MOVES[Status(status)]):
        task_id = await bench.put(status, locked=True)
        token = (await bench.get(task_id))["lease_token"]
        moved = await bench.move(task_id, target, release_lock=release)
        kept = not release and Status(target) not in FINISHED
        assert moved["locked_by"] == (ANN if kept else None), target
        assert (moved["lock_expires_at"] is not None) == kept
        assert moved["lease_token"] == token


async def test_the_move_to_in_progress_takes_the_lock(bench: ToolBench) -> None:
    """Unlocked, todo->in_progress is a claim; with release_lock the task goes on without a holder."""
    task_id = await bench.create()
    moved = await bench.move(task_id, "in_progress", BOB)
    assert (moved["locked_by"], moved["lease_token"], moved["attempts"]) == (BOB, 1, 1)
    other = await bench.move(await bench.create(), "in_progress", BOB, release_lock=True)
    assert (other["status"], other["locked_by"]) == ("in_progress", None)


async def test_a_lock_kept_into_review_gives_way(bench: ToolBench) -> None:
    """In in_review the worker's lock still shows, and anybody may claim the task or move it."""
    for reviewer in ("claim", "completed", "todo", "failed", "in_review"):
        task_id = await bench.create()
        token = (await bench.start(task_id))["lease_token"]
        assert (await bench.move(task_id, "in_review"))["locked_by"] == ANN
        if reviewer == "claim":
            won = await bench.claim(task_id, BOB)
            assert (won["lease_token"], won["task"]["locked_by"]) == (token + 1, BOB)
            lost = await bench.call("core_claim_task", task_id=task_id, agent_id=ANN)
            assert (lost["reason"], lost["locked_by"]) == ("LEASE_HELD", BOB)
            await bench.refused(
                "STALE_LEASE", "core_transition_task", task_id=task_id, to_status="completed", lease_token=token
            )
            await bench.refused("LEASE_HELD", "core_transition_task", task_id=task_id, to_status="todo", agent_id=ANN)
        else:
            moved = await bench.move(task_id, reviewer, BOB)
            assert (moved["status"], moved["locked_by"]) == (reviewer, None)


async def test_the_author_that_takes_its_task_back_from_review_holds_it_fully(bench: ToolBench) -> None:
    """in_review->todo by the holder keeps the lock, and it gives way no more."""
    task_id = await bench.create()
    await bench.start(task_id)
    await bench.move(task_id, "in_review")
    await bench.move(task_id, "todo")
    lost = await bench.call("core_claim_and_start_task", task_id=task_id, agent_id=BOB)
    assert (lost["reason"], lost["locked_by"]) == ("LEASE_HELD", ANN)


async def test_outputs_go_with_review_and_completion_only(bench: ToolBench) -> None:
    """They are kept as the task's result; elsewhere they are refused, and so is more than 256 KiB of them."""
    task_id = await bench.create()
    await bench.start(task_id)
    for target in ("todo", "failed", "blocked", "cancelled"):
        await bench.refused("INVALID", "core_transition_task", task_id=task_id, to_status=target, outputs=[1])
    for wrong in ({"a": 1}, "text", None):
        await bench.refused("INVALID", "core_transition_task", task_id=task_id, to_status="in_review", outputs=wrong)
    fitting = ["x" * (262_144 - 4)]
    await bench.refused(
        "TOO_LARGE", "core_transition_task", task_id=task_id, to_status="in_review", outputs=["x" * (262_144 - 3)]
    )
    await bench.move(task_id, "in_review", outputs=fitting)
    assert "omitted" in (await bench.get(task_id))["outputs"]
    done = await bench.move(task_id, "completed", outputs=[{"answer": 42}])
    assert done["outputs"] == [{"answer": 42}]
    assert (await bench.move(task_id, "todo"))["outputs"] is None


async def test_finishing_and_reopening_keep_the_books(bench: ToolBench) -> None:
    """completed_at comes and goes; the note of failed is the task's reason until it is reopened."""
    task_id = await bench.create()
    await bench.start(task_id)
    failed = await bench.move(task_id, "failed", note="no disk")
    assert (failed["reason"], failed["completed_at"] is not None) == ("no disk", True)
    again = await bench.move(task_id, "todo", note="disk is back")
    assert (again["reason"], again["completed_at"], again["attempts"]) == (None, None, 0)


# --- core_release_task_lock and core_recover_task --------------------------------------------------------------------


@pytest.mark.parametrize("status", UNFINISHED)
async def test_releasing_leaves_the_status(bench: ToolBench, status: str) -> None:
    """The holder lets go where the task stands; a second release is released=false and changes nothing."""
    task_id = await bench.put(status, locked=True)
    async with bench.untouched(task_id):
        body = await bench.refused("LEASE_HELD", "core_release_task_lock", task_id=task_id, agent_id=BOB)
        assert body["locked_by"] == ANN
    first = await bench.call("core_release_task_lock", task_id=task_id, note="done for today")
    assert (first["released"], first["status"], first["locked_by"]) == (True, status, None)
    last = (await bench.history(task_id))[-1]
    assert (last["event"], last["note"]) == ("unlocked", "done for today")
    async with bench.untouched(task_id):
        assert (await bench.call("core_release_task_lock", task_id=task_id))["released"] is False


async def test_who_else_may_release_a_lock(bench: ToolBench) -> None:
    """The token, a person, a system, and anybody once the lock has run out."""
    for who in ("token", *PEOPLE, "late"):
        task_id = await bench.create()
        token = (await bench.claim(task_id))["lease_token"]
        if isinstance(who, Actor):
            arguments: dict[str, Any] = {"caller": Caller(who), "agent_id": agent_uuid(who.type, who.id)}
        else:
            arguments = {"agent_id": BOB} | ({"lease_token": token} if who == "token" else {})
        if who == "late":
            bench.clock.step(LOCK_S)
        assert (await bench.call("core_release_task_lock", task_id=task_id, **arguments))["released"] is True


@pytest.mark.parametrize("target", ["todo", "failed", "in_review"])
@pytest.mark.parametrize("status", STATES)
async def test_recovery_works_from_every_status(bench: ToolBench, status: str, target: str) -> None:
    """Whoever held it is fenced: token + 1, no lock, and the note is in the history as recovered."""
    task_id = await bench.put(status, locked=status in UNFINISHED)
    before = await bench.get(task_id)
    after = await bench.call(
        "core_recover_task", task_id=task_id, agent_id=BOB, to_status=target, note="worker is gone"
    )
    assert (after["status"], after["locked_by"]) == (target, None)
    assert after["lease_token"] == before["lease_token"] + 1
    assert after["attempts"] == 0
    assert after["reason"] == ("worker is gone" if target == "failed" else None)
    assert (after["completed_at"] is not None) == (target == "failed")
    last = (await bench.history(task_id))[-1]
    assert (last["event"], last["from"], last["to"]) == ("recovered", status, target)
    assert (last["note"], last["agent_id"]) == ("worker is gone", BOB)
    await bench.refused(
        "STALE_LEASE",
        "core_update_task",
        task_id=task_id,
        priority="low",
        lease_token=before["lease_token"],
    )


async def test_recovery_fences_an_ats_worker_too(bench: ToolBench) -> None:
    """The lock and the lease are one thing: after a recovery the worker's renewal is refused."""
    task_id = await bench.create()
    number = (await bench.get(task_id))["id"]
    worker = Actor("agent", "w", "W")
    await bench.store.write(lambda tx: leases.claim(tx, Ref(number), worker, lease_ms=60_000))
    await bench.call("core_recover_task", task_id=task_id, to_status="todo", note="stuck")
    with pytest.raises(StaleLeaseError):
        await bench.store.write(lambda tx: leases.renew(tx, Ref(number), worker, token=1))


@pytest.mark.parametrize("target", sorted({*STATES} - {"todo", "failed", "in_review"}))
async def test_recovery_leads_to_three_states_only(bench: ToolBench, target: str) -> None:
    """Other targets are INVALID; a note is required and may not be blank."""
    task_id = await bench.put("in_progress")
    async with bench.untouched(task_id):
        await bench.refused("INVALID", "core_recover_task", task_id=task_id, to_status=target, note="x")
        for note in ({}, {"note": ""}, {"note": " "}, {"note": "x" * 4_001}):
            await bench.refused("INVALID", "core_recover_task", task_id=task_id, to_status="todo", **note)


async def test_unknown_tasks_and_tools_are_not_found(bench: ToolBench) -> None:
    """NOT_FOUND for a UUID that is nobody's; an unknown tool gets a suggestion."""
    await bench.create()
    for name, arguments in (
        ("core_get_task", {}),
        ("core_claim_task", {}),
        ("core_claim_and_start_task", {}),
        ("core_transition_task", {"to_status": "todo"}),
        ("core_update_task", {"priority": "low"}),
        ("core_release_task_lock", {}),
        ("core_recover_task", {"to_status": "todo", "note": "x"}),
        ("post_task_message", {"body": "x"}),
        ("list_task_messages", {}),
        ("explain", {}),
        ("unblocks", {}),
        ("task_history", {}),
    ):
        await bench.refused("NOT_FOUND", name, task_id=NOBODY, **arguments)
    for number in (7, "7", "#7"):
        told = await bench.refused("INVALID", "core_get_task", task_id=number)
        assert "is a task's number, its id: core_list_tasks" in told["error"]
    with pytest.raises(Exception, match="Did you mean core_get_task"):
        await bench.box.call("core_get_tsk", {}, bench.caller)


async def test_the_caller_that_is_the_agent_keeps_its_name(bench: ToolBench) -> None:
    """An agent_id that is the caller's own shows the caller's name; another's shows a part of the UUID."""
    eve = Caller(Actor("human", "eve", "Eve"))
    task_id = await bench.create()
    won = await bench.call("core_claim_task", caller=eve, task_id=task_id, agent_id=agent_uuid("human", "eve"))
    assert won["task"]["locked_by_name"] == "Eve"
    other = await bench.claim(await bench.create(), EVE)
    assert other["task"]["locked_by_name"] == f"agent-{EVE[:8]}"
