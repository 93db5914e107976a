"""What every store of the task service must do. Each store in STORES runs the whole file."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.core.lifecycle import ATS_WORD, MOVES, Status
from dispatch.errors import (
    ConflictError,
    IllegalMoveError,
    LeaseHeldError,
    NotFoundError,
    NotReadyError,
    StaleLeaseError,
)
from dispatch.service import dependencies, history, lapse, leases, locks, moves, tasks, tenants
from dispatch.service.events import STEP
from dispatch.service.rows import Ref, Scope, fetch
from tests.support.service import STORES, SteppingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.events import Event
    from dispatch.service.store import Store

ANN = Actor("agent", "ann", "Ann")
BOB = Actor("agent", "bob", "Bob")
EVE = Actor("human", "eve", "Eve")
LEASE_MS = 60_000
REGRANT_MS = 15_000


class Bench:
    """A store with the use cases as coroutines, one task each unless said otherwise."""

    def __init__(self, store: Store, clock: SteppingClock) -> None:
        self.store = store
        self.clock = clock
        self.published: list[Event] = []
        store.bus.listen(self.published.extend)

    async def do(self, use_case: Any, ref: int, actor: Actor = ANN, **arguments: Any) -> Any:
        """Run a use case as one transaction."""
        return await self.store.write(lambda tx: use_case(tx, Ref(ref), actor, **arguments))

    async def create(self, **fields: Any) -> int:
        """Create a task and return its number."""
        new = tasks.NewTask(**{"title": "a task", **fields})
        return int((await self.store.write(lambda tx: tasks.create(tx, None, ANN, new))).id)

    async def claim(self, ref: int, actor: Actor = ANN, claim_id: str | None = None) -> Any:
        """Claim and return the row."""
        return (await self.do(leases.claim, ref, actor, lease_ms=LEASE_MS, claim_id=claim_id)).task

    async def started(self) -> int:
        """Return a task that Ann claimed (token 1) and runner r1 started."""
        ref = await self.create()
        await self.claim(ref)
        await self.do(leases.start, ref, token=1, runner="r1")
        return ref

    async def row(self, ref: int) -> Any:
        """Return the task as it is now."""
        return await self.store.read(lambda tx: fetch(tx, Ref(ref)))

    async def history(self, ref: int) -> list[Any]:
        """Return the lines of the task's history that moved it."""
        lines = await self.store.read(lambda tx: history.of_task(tx, ref))
        return [line for line in lines if line.to_status is not None]

    async def put(self, status: Status) -> int:
        """Return a task in ``status``, brought there by legal moves."""
        way = {
            Status.BACKLOG: (Status.CANCELLED, Status.BACKLOG),
            Status.TODO: (),
            Status.IN_PROGRESS: (Status.IN_PROGRESS,),
            Status.IN_REVIEW: (Status.IN_PROGRESS, Status.IN_REVIEW),
            Status.COMPLETED: (Status.IN_PROGRESS, Status.IN_REVIEW, Status.COMPLETED),
            Status.FAILED: (Status.IN_PROGRESS, Status.FAILED),
            Status.BLOCKED: (Status.BLOCKED,),
            Status.CANCELLED: (Status.CANCELLED,),
            Status.SKIPPED: (Status.SKIPPED,),
        }[status]
        ref = await self.create()
        for step in way:
            await self.patch(ref, status=step)
        return ref

    async def patch(self, ref: int, actor: Actor = ANN, status: Status | None = None, **fields: Any) -> Any:
        """Change fields or status by name."""
        return await self.do(tasks.patch, ref, actor, fields=fields, status=status, default_lease_ms=LEASE_MS)


@pytest.fixture(params=STORES)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """A fresh store of every kind."""
    clock = SteppingClock()
    async with STORES[request.param](clock) as store:
        yield Bench(store, clock)


@pytest.mark.parametrize("current", Status)
async def test_exactly_the_legal_moves_are_possible(bench: Bench, current: Status) -> None:
    """Of the nine moves from each state, those of the table succeed; the others change nothing."""
    for target in Status:
        ref = await bench.put(current)
        before, lines = await bench.row(ref), len(await bench.history(ref))
        if target in MOVES[current]:
            assert (await bench.patch(ref, status=target)).status == target
            assert (await bench.history(ref))[-1].to_status == target
        else:
            with pytest.raises(IllegalMoveError, match=f"{ATS_WORD[current]} status"):
                await bench.patch(ref, status=target)
            assert await bench.row(ref) == before
            assert len(await bench.history(ref)) == lines


@pytest.mark.parametrize(
    ("verb", "ends"),
    [
        (moves.complete, {Status.IN_PROGRESS: Status.COMPLETED, Status.IN_REVIEW: Status.COMPLETED}),
        (moves.fail, {Status.IN_PROGRESS: Status.FAILED, Status.IN_REVIEW: Status.FAILED}),
        (
            moves.cancel,
            dict.fromkeys(
                (Status.BACKLOG, Status.TODO, Status.IN_PROGRESS, Status.IN_REVIEW, Status.BLOCKED), Status.CANCELLED
            ),
        ),
        (moves.reject, {Status.BACKLOG: Status.SKIPPED, Status.TODO: Status.SKIPPED}),
        (
            moves.reopen,
            dict.fromkeys((Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.SKIPPED), Status.TODO),
        ),
    ],
)
async def test_verbs_apply_where_the_lifecycle_says(bench: Bench, verb: Any, ends: dict[Status, Status]) -> None:
    """Each verb leads from each state to the one state it should, or is refused and changes nothing."""
    for current in Status:
        ref = await bench.put(current)
        before = await bench.row(ref)
        if current in ends:
            assert (await bench.do(verb, ref, EVE)).status == ends[current]
        else:
            with pytest.raises(IllegalMoveError) as caught:
                await bench.do(verb, ref, EVE)
            assert caught.value.facts["status"] == ATS_WORD[current]
            assert await bench.row(ref) == before


async def test_history_is_a_chain_and_tells_of_every_step(bench: Bench) -> None:
    """Every line of the history begins where the one before ended; completing passes through review."""
    ref = await bench.started()
    await bench.do(moves.complete, ref, outputs=[1], token=1)
    await bench.do(moves.reopen, ref, EVE, reason="again")
    lines = await bench.history(ref)
    assert all(one.to_status == two.from_status for one, two in pairwise(lines))
    assert [line.to_status for line in lines] == ["todo", "in_progress", "in_review", "completed", "todo"]
    assert [line.type for line in lines][2] == STEP
    assert (lines[-1].note, lines[-1].actor_id) == ("again", "eve")


async def test_events_are_published_after_commit_in_order(bench: Bench) -> None:
    """Concurrent requests publish their events with growing numbers, and each is in the log already."""
    refs = [await bench.create() for _ in range(20)]
    await asyncio.gather(*(bench.claim(ref) for ref in refs))
    seqs = [event.seq for event in bench.published]
    assert seqs == sorted(set(seqs))
    assert len(seqs) == 40
    assert bench.store.bus.last_seq == seqs[-1]
    logged = await bench.store.read(lambda tx: history.page(tx, 0, seqs[-1], 100))
    assert [event.seq for event in logged] == seqs


async def test_sixteen_claimants_one_winner(bench: Bench) -> None:
    """Of sixteen actors that claim one task at the same time exactly one gets it; the token grows by one."""
    ref = await bench.create()
    actors = [Actor("agent", f"a{n}", "A") for n in range(16)]
    results = await asyncio.gather(*(bench.claim(ref, actor) for actor in actors), return_exceptions=True)
    assert sum(isinstance(result, LeaseHeldError) for result in results) == 15
    assert (await bench.row(ref)).fencing_token == 1


async def test_a_refused_request_does_not_undo_its_neighbours(bench: Bench) -> None:
    """Requests that share a commit succeed and fail each for itself."""
    ref = await bench.create()
    results = await asyncio.gather(
        *(bench.create() for _ in range(5)),
        bench.do(moves.complete, ref),
        bench.do(moves.cancel, 10**9),
        *(bench.create() for _ in range(5)),
        return_exceptions=True,
    )
    assert [type(r) for r in results if isinstance(r, Exception)] == [IllegalMoveError, NotFoundError]
    for created in results:
        if isinstance(created, int):
            assert (await bench.row(created)).status == Status.TODO


async def test_a_use_case_that_breaks_half_way_changes_nothing(bench: Bench) -> None:
    """An exception after the first statement of a transaction leaves no trace, and the store goes on."""
    ref = await bench.create()

    def broken(tx: Any) -> None:
        moves.cancel(tx, Ref(ref), ANN)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bench.store.write(broken)
    assert (await bench.row(ref)).status == Status.TODO
    assert len(bench.published) == 1
    await bench.claim(ref)


async def test_claim_id_finds_a_lost_answer(bench: Bench) -> None:
    """The same actor with the same claim_id gets the same grant; another claim_id or actor is refused."""
    ref = await bench.create()
    first = await bench.claim(ref, claim_id="try-1")
    again = await bench.claim(ref, claim_id="try-1")
    assert (again.fencing_token, again.lease_expires_at) == (1, first.lease_expires_at)
    for actor, claim_id in ((ANN, "try-2"), (BOB, "try-1"), (BOB, None)):
        with pytest.raises(LeaseHeldError) as caught:
            await bench.claim(ref, actor, claim_id)
        assert caught.value.facts["holder"] == "ann"


async def test_a_plain_claim_by_the_holder_renews(bench: Bench) -> None:
    """Without claim_id a second claim by the holder extends the lease and keeps the token."""
    ref = await bench.create()
    first = await bench.claim(ref)
    bench.clock.step(10)
    second = await bench.claim(ref)
    assert second.fencing_token == first.fencing_token == 1
    assert second.lease_expires_at >= first.lease_expires_at + 10_000


async def test_start_happens_once_per_grant(bench: Bench) -> None:
    """A second start by the same runner is answered alike and counts nothing; another runner is refused."""
    ref = await bench.create()
    await bench.claim(ref)
    for _ in range(2):
        granted = await bench.do(leases.start, ref, token=1, runner="r1", message="go")
        assert (granted.task.attempts, granted.ttl_ms) == (1, LEASE_MS)
    with pytest.raises(StaleLeaseError):
        await bench.do(leases.start, ref, token=1, runner="r2")
    assert [event.type for event in bench.published].count("task.message") == 1


@pytest.mark.parametrize("counted", [False, True])
async def test_release_gives_back_and_counts_only_when_told(bench: Bench, *, counted: bool) -> None:
    """A release keeps or takes back the started attempt, delays the next claim, and may be repeated."""
    ref = await bench.started()
    for _ in range(2):
        row = await bench.do(leases.release, ref, token=1, counted=counted, delay_ms=5_000, reason="later")
        assert (row.status, row.attempts, row.runner, row.holder_id) == ("todo", int(counted), None, None)
    with pytest.raises(NotReadyError) as caught:
        await bench.claim(ref, BOB)
    assert 0 < caught.value.facts["retry_after_ms"] <= 5_000
    bench.clock.step(5.1)
    claimed = await bench.claim(ref, BOB)
    assert (claimed.fencing_token, claimed.reason) == (2, "later")
    with pytest.raises(StaleLeaseError):
        await bench.do(leases.release, ref, token=1, counted=counted, delay_ms=5_000, reason="later")


async def test_a_release_before_start_takes_no_attempt_back(bench: Bench) -> None:
    """Attempts never fall below zero."""
    ref = await bench.create()
    await bench.claim(ref)
    assert (await bench.do(leases.release, ref, token=1)).attempts == 0


async def test_the_holder_of_a_lock_claims_under_its_token(bench: Bench) -> None:
    """Who locked a task in todo may claim it, and keeps the grant; somebody else may not."""
    ref = await bench.create()
    await bench.do(locks.take, ref, lease_ms=LEASE_MS)
    with pytest.raises(LeaseHeldError):
        await bench.claim(ref, BOB)
    row = await bench.claim(ref)
    assert (row.status, row.fencing_token, row.holder_id, row.held) == (Status.IN_PROGRESS, 1, "ann", True)
    assert (await bench.history(ref))[-1].type == "task.claimed"


async def test_expiry_waits_for_the_regrant_delay(bench: Bench) -> None:
    """A lease is taken back only after expiry plus delay; a started attempt becomes a lease loss."""
    started, queued = await bench.started(), await bench.create()
    await bench.claim(queued)

    async def expire() -> int | None:
        return await bench.store.write(lambda tx: lapse.expire(tx, REGRANT_MS))

    bench.clock.step((LEASE_MS + REGRANT_MS) / 1000 - 1)
    assert await expire() is not None
    with pytest.raises(LeaseHeldError):
        await bench.claim(started, BOB)
    bench.clock.step(1.1)
    assert await expire() is None
    for ref, losses in ((started, 1), (queued, 0)):
        row = await bench.row(ref)
        assert (row.status, row.attempts, row.lease_losses, row.runner) == ("todo", 0, losses, None)
        assert (await bench.claim(ref, BOB)).fencing_token == 2


async def test_a_renewed_lease_does_not_expire(bench: Bench) -> None:
    """Renewing moves the end of the lease, before and after start, and only with the token."""
    ref = await bench.create()
    await bench.claim(ref)
    for _ in range(4):
        bench.clock.step(40)
        assert (await bench.do(leases.renew, ref, token=1)).ttl_ms == LEASE_MS
        await bench.store.write(lambda tx: lapse.expire(tx, 0))
    assert (await bench.row(ref)).status == Status.IN_PROGRESS
    with pytest.raises(StaleLeaseError):
        await bench.do(leases.renew, ref, token=2)


async def test_extend_all_gives_full_leases(bench: Bench) -> None:
    """After an absence of the service every live lease has its own full length again."""
    ref = await bench.create()
    await bench.do(leases.claim, ref, lease_ms=7_000)
    bench.clock.step(100)
    assert await bench.store.write(lapse.extend_all) == 1
    row = await bench.row(ref)
    assert 6_900 <= row.lease_expires_at - bench.clock.now_ms() <= 7_000


async def test_a_stale_token_changes_nothing(bench: Bench) -> None:
    """Every call with an old token is refused with the task's word, and the row stays as it is."""
    ref = await bench.started()
    await bench.do(leases.release, ref, token=1)
    await bench.claim(ref, BOB)
    before = await bench.row(ref)
    for use_case, arguments in (
        (leases.start, {"runner": "r1"}),
        (leases.renew, {}),
        (leases.release, {}),
        (moves.complete, {"outputs": [1]}),
        (moves.fail, {"reason": "no"}),
    ):
        with pytest.raises(StaleLeaseError) as caught:
            await bench.do(use_case, ref, token=1, **arguments)
        assert caught.value.facts == {"status": "in_progress"}
    assert await bench.row(ref) == before


async def test_a_cancelled_attempt_is_told_so(bench: Bench) -> None:
    """After a cancel, renew and complete are refused and say ``cancelled``."""
    ref = await bench.started()
    await bench.do(moves.cancel, ref, EVE)
    for use_case in (leases.renew, moves.complete):
        with pytest.raises(StaleLeaseError) as caught:
            await bench.do(use_case, ref, token=1)
        assert caught.value.facts["status"] == "cancelled"


@pytest.mark.parametrize(
    ("use_case", "first", "other"),
    [
        (moves.complete, {"outputs": [{"r": 1}]}, {"outputs": [{"r": 2}]}),
        (moves.fail, {"reason": "a"}, {"reason": "b"}),
    ],
)
async def test_a_repeated_report_is_answered_as_the_first(bench: Bench, use_case: Any, first: Any, other: Any) -> None:
    """The same report with the same token succeeds again and is logged once; another one is refused."""
    ref = await bench.started()
    ended = await bench.do(use_case, ref, token=1, **first)
    logged = len(bench.published)
    assert await bench.do(use_case, ref, token=1, **first) == ended
    assert await bench.do(use_case, ref, **first) == ended
    assert len(bench.published) == logged
    for arguments in ({"token": 1, **other}, {"token": 2, **first}):
        with pytest.raises(StaleLeaseError):
            await bench.do(use_case, ref, **arguments)
    with pytest.raises(IllegalMoveError):
        await bench.do(use_case, ref, BOB, **first)
    await bench.do(moves.reopen, ref, EVE)
    with pytest.raises(StaleLeaseError):
        await bench.do(use_case, ref, token=1, **first)


async def test_without_a_token_only_the_holder_people_and_systems_report(bench: Bench) -> None:
    """A plain call of another agent is refused while the lease is live and accepted after it."""
    ref = await bench.started()
    for use_case in (moves.complete, moves.fail):
        with pytest.raises(LeaseHeldError) as caught:
            await bench.do(use_case, ref, BOB)
        assert caught.value.facts["status"] == "in_progress"
    with pytest.raises(LeaseHeldError):
        await bench.patch(ref, BOB, status=Status.TODO)
    for actor in (ANN, EVE, Actor("system", "cron", "Cron")):
        other = await bench.started()
        assert (await bench.do(moves.complete, other, actor)).status == Status.COMPLETED
    bench.clock.step(LEASE_MS / 1000 + 1)
    assert (await bench.do(moves.complete, ref, BOB)).status == Status.COMPLETED


async def test_a_task_that_asks_for_review_stops_there(bench: Bench) -> None:
    """Complete leads to in_review; its repetition stays there; somebody else approves or sends it back."""
    for approve in (True, False):
        ref = await bench.create(needs_review=True)
        await bench.claim(ref)
        for _ in range(2):
            row = await bench.do(moves.complete, ref, outputs=["x"], token=1)
            assert (row.status, row.held) == (Status.IN_REVIEW, False)
        if approve:
            row = await bench.do(moves.complete, ref, EVE)
            assert (row.status, row.outputs) == (Status.COMPLETED, '["x"]')
        else:
            row = await bench.patch(ref, EVE, status=Status.TODO)
            assert (row.status, row.attempts, row.outputs) == (Status.TODO, 0, '["x"]')


async def test_reopen_begins_afresh(bench: Bench) -> None:
    """Reopening clears counters, outputs and the holder, and keeps the token."""
    ref = await bench.started()
    await bench.do(moves.complete, ref, outputs=[1], token=1)
    row = await bench.do(moves.reopen, ref, EVE)
    cleared = (row.attempts, row.lease_losses, row.not_before, row.outputs, row.holder_id, row.completed_at)
    assert cleared == (0, 0, None, None, None, None)
    assert (await bench.claim(ref, BOB)).fencing_token == 2


async def test_a_task_waits_for_its_dependencies(bench: Bench) -> None:
    """A task with an open dependency cannot be claimed, with a failed one it can be failed from todo."""
    needed, waiting = await bench.create(), await bench.create()
    wish = dependencies.Asked((needed,), is_strict=True)
    await bench.do(tasks.patch, waiting, fields={}, status=None, default_lease_ms=LEASE_MS, wish=wish)
    with pytest.raises(NotReadyError) as caught:
        await bench.claim(waiting)
    uuid = (await bench.row(needed)).uuid
    assert caught.value.facts["waits_for"] == [{"id": needed, "task_id": uuid, "status": "pending"}]
    with pytest.raises(IllegalMoveError):
        await bench.do(moves.fail, waiting, reason="early")
    await bench.claim(needed)
    await bench.do(moves.fail, needed, reason="no")
    assert (await bench.do(moves.fail, waiting, BOB, reason="Blocked")).status == Status.FAILED
    assert [line.to_status for line in await bench.history(waiting)] == ["todo", "in_progress", "failed"]
    await bench.do(moves.reopen, needed, EVE)
    await bench.do(moves.reopen, waiting, EVE)
    await bench.claim(needed)
    await bench.do(moves.complete, needed)
    assert (await bench.claim(waiting)).status == Status.IN_PROGRESS


async def test_a_release_by_patch_is_a_release(bench: Bench) -> None:
    """``status=pending`` from in_progress gives the task back, uncounted, as ATS clients do it."""
    ref = await bench.started()
    row = await bench.patch(ref, status=Status.TODO)
    assert (row.status, row.attempts, row.holder_id) == (Status.TODO, 0, None)
    assert bench.published[-1].type == "task.released"


async def test_patch_is_whole_or_nothing(bench: Bench) -> None:
    """A patch whose move is illegal does not change the fields either."""
    ref = await bench.create()
    with pytest.raises(IllegalMoveError):
        await bench.patch(ref, title="new", status=Status.COMPLETED)
    assert (await bench.row(ref)).title == "a task"
    assert (await bench.patch(ref, title="new", priority=9)).title == "new"
    assert bench.published[-1].type == "task.updated"


async def test_a_project_hides_the_tasks_of_others(bench: Bench) -> None:
    """A task is found by number and UUID in its own project only, and unscoped everywhere."""
    await bench.store.write(lambda tx: tenants.create_organization(tx, "o", "O"))
    for slug in ("p", "q"):
        await bench.store.write(lambda tx, slug=slug: tenants.create_project(tx, "o", slug, slug, ""))
    with pytest.raises(ConflictError):
        await bench.store.write(lambda tx: tenants.create_project(tx, "o", "p", "P", ""))
    new = tasks.NewTask("t")
    row = await bench.store.write(lambda tx: tasks.create(tx, Scope("o", "p"), ANN, new))

    def find(ident: int | str, scope: Scope | None) -> Any:
        return bench.store.read(lambda tx: fetch(tx, Ref(ident, scope)))

    for ident in (row.id, row.uuid):
        for scope in (None, Scope("o", "p")):
            assert (await find(ident, scope)).id == row.id
        with pytest.raises(NotFoundError):
            await find(ident, Scope("o", "q"))


async def test_list_filters_sorts_and_pages(bench: Bench) -> None:
    """Every filter narrows, equal keys are in order of creation, pages do not overlap."""
    refs = [
        await bench.create(title=f"T{n} 100% Über", priority=n % 3 + 1, channel="ab"[n % 2], type="xy"[n % 2])
        for n in range(9)
    ]
    await bench.claim(refs[0])

    async def find(**filters: Any) -> list[int]:
        return [row.id for row in await bench.store.read(lambda tx: tasks.find(tx, tasks.Query(**filters)))]

    assert await find() == refs[::-1]
    assert await find(sort_by="priority") == [refs[n] for n in (2, 5, 8, 1, 4, 7, 0, 3, 6)]
    assert await find(sort_by="priority", limit=4, offset=3) == [refs[n] for n in (1, 4, 7, 0)]
    assert await find(after=refs[5], limit=2) == [refs[4], refs[3]]
    assert await find(after=refs[5], descending=False) == refs[6:]
    assert await find(after=refs[8], descending=False) == []
    assert await find(channel=("a",), descending=False) == refs[::2]
    assert await find(channel=("a", "b"), type=("y",), descending=False) == refs[1::2]
    assert await find(status=(Status.IN_PROGRESS, Status.FAILED)) == [refs[0]]
    assert await find(assignee_id="ann") == [refs[0]]
    assert await find(ids=(refs[3], 10**9)) == [refs[3]]
    assert await find(min_priority=3, max_priority=3, descending=False) == [refs[n] for n in (2, 5, 8)]
    assert await find(search="t4 100% üB") == [refs[4]]
    assert await find(search="1_0%") == []
    assert await find(updated_after=bench.clock.now_ms()) == []
    assert await find(created_after=bench.clock.now_ms() - 60_000, limit=2) == refs[:-3:-1]
    assert await find(scope=tenants.DEFAULT, limit=1) == [refs[-1]]


async def test_stats_count_everything(bench: Bench) -> None:
    """Stats count by word and channel and know what was recent."""
    ref = await bench.started()
    await bench.do(moves.complete, ref, token=1)
    await bench.create(channel="c")
    bench.clock.step(2 * 86_400)
    await bench.create()
    stats = await bench.store.read(tasks.stats)
    assert stats["by_status"] == {"completed": 1, "pending": 2}
    assert stats["by_channel"] == {"default": 2, "c": 1}
    assert stats["recent"] == {"created_24h": 1, "completed_24h": 0, "created_7d": 3, "completed_7d": 1}
    assert (stats["total"], stats["completed_count"]) == (3, 1)


async def test_searching_ignores_case_for_all_of_unicode(bench: Bench) -> None:
    """What one database finds the other finds: umlauts, Greek, Cyrillic, Turkish, and nothing that is not there."""
    titles = ["Größe ÄÖÜ", "ΟΔΥΣΣΕΥΣ", "ПРИВЕТ мир", "İstanbul", "naïve CAFÉ", "50% _off_ \\ 'quoted'", "日本語 🙂"]
    refs = {title: await bench.create(title=title) for title in titles}

    async def find(search: str) -> list[int]:
        return [row.id for row in await bench.store.read(lambda tx: tasks.find(tx, tasks.Query(search=search)))]

    for search, title in (
        ("grÖSSE", None),
        ("GRÖßE äöü", "Größe ÄÖÜ"),
        ("οδυσσευς", "ΟΔΥΣΣΕΥΣ"),
        ("ΟΔΥΣΣΕΥΣ", "ΟΔΥΣΣΕΥΣ"),
        ("δυσ", "ΟΔΥΣΣΕΥΣ"),
        ("привет МИР", "ПРИВЕТ мир"),
        ("istanbul", "İstanbul"),
        ("İSTAN", "İstanbul"),
        ("NAÏVE café", "naïve CAFÉ"),
        ("50% _OFF_ \\ 'Q", "50% _off_ \\ 'quoted'"),
        ("5_%", None),
        ("本語 🙂", "日本語 🙂"),
    ):
        assert await find(search) == ([] if title is None else [refs[title]]), search


async def test_titles_are_in_order_of_code_points(bench: Bench) -> None:
    """Sorting by title does not depend on the database's language."""
    titles = ["b", "a-c", "ab", "B", "_", "é", "Z", "a b", "ä", "日", "🙂", "", "e"]
    for title in titles:
        await bench.create(title=title)
    query = tasks.Query(sort_by="title", descending=False)
    rows = await bench.store.read(lambda tx: tasks.find(tx, query))
    assert [row.title for row in rows] == sorted(titles)


async def test_extreme_values_come_back_as_they_were(bench: Bench) -> None:
    """The largest numbers and the oddest texts are stored, compared and found alike on every database."""
    largest = 2**63 - 1
    for order_index in (1.7976931348623157e308, -1.7976931348623157e308, 5e-324, 0.0, 0.1, 1e16 + 2):
        ref = await bench.create(order_index=order_index)
        assert repr((await bench.row(ref)).order_index) == repr(order_index)
    odd = "\u0001\u001f\u007f\u0085\u2028\ufffe\uffff\U0010ffff e\u0301 \u202eabc \\ ' \" % %s {} :p"
    ref = await bench.create(title=odd, description=odd * 100, payload=f'"{largest}"')
    await bench.do(moves.cancel, ref, reason=odd)
    row = await bench.row(ref)
    assert (row.title, row.description, row.payload, row.reason) == (odd, odd * 100, f'"{largest}"', odd)
    assert (await bench.history(ref))[-1].note == odd
    for filters in (
        {"offset": largest},
        {"ids": (largest,)},
        {"after": largest, "descending": False},
        {"project_id": largest},
        {"created_after": largest},
    ):
        query = tasks.Query(**filters)
        assert await bench.store.read(lambda tx, query=query: tasks.find(tx, query)) == []
    with pytest.raises(NotFoundError):
        await bench.row(largest)
    with pytest.raises(StaleLeaseError):
        await bench.do(leases.renew, ref, token=largest)


async def test_events_are_numbered_without_gaps(bench: Bench) -> None:
    """Requests that were refused or broke take no number, in a commit of their own or with others."""

    def broken(tx: Any) -> None:
        tasks.create(tx, None, ANN, tasks.NewTask("gone"))
        raise ZeroDivisionError

    async def attempt(work: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            await bench.store.write(work)

    await attempt(broken)
    await asyncio.gather(*(attempt(broken) if n % 3 else bench.create() for n in range(12)))
    await attempt(broken)
    await bench.create()
    assert [event.seq for event in bench.published] == [1, 2, 3, 4, 5]
    logged = await bench.store.read(lambda tx: history.page(tx, 0, 100, 100))
    assert [event.seq for event in logged] == [1, 2, 3, 4, 5]


async def test_a_task_that_is_taken_from_a_runner_rests_until_it_has_stopped(bench: Bench) -> None:
    """Put back or recovered by somebody else than its holder, a started task is not offered at once; else it is."""
    taken, recovered, given, unstarted = [await bench.started() for _ in range(3)] + [await bench.create()]
    await bench.claim(unstarted)
    assert (await bench.patch(taken, EVE, Status.TODO)).not_before == bench.clock.now_ms() + leases.HANDOVER_MS
    row = await bench.do(locks.recover, recovered, EVE, target=Status.TODO, note="stuck")
    assert row.not_before == bench.clock.now_ms() + leases.HANDOVER_MS
    for ref, actor in ((given, ANN), (unstarted, EVE)):
        assert (await bench.patch(ref, actor, Status.TODO)).not_before is None
    with pytest.raises(NotReadyError):
        await bench.claim(taken, BOB)
    bench.clock.step(leases.HANDOVER_MS / 1000)
    await bench.claim(taken, BOB)
    dying = await bench.started()
    bench.clock.step(LEASE_MS / 1000 - 1)
    row = await bench.do(locks.recover, dying, EVE, target=Status.TODO, note="stuck")
    assert row.not_before == bench.clock.now_ms() + 1_000
    bench.clock.step(2)
    await bench.claim(dying)
    bench.clock.step(LEASE_MS / 1000 + 1)
    row = await bench.do(locks.recover, dying, EVE, target=Status.TODO, note="its lease is over")
    assert row.not_before is None
