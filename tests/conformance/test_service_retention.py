"""What is kept no longer goes, and nothing else does. On every store."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import delete, event, func, select, true

from dispatch.ats.model import Actor
from dispatch.core.retention import KINDS, Retention
from dispatch.errors import ConflictError, NotFoundError, ReusedSealError
from dispatch.service import (
    changes,
    creation,
    deliveries,
    dependencies,
    history,
    leases,
    measures,
    messages,
    moves,
    pruning,
    retention,
    seals,
    tasks,
)
from dispatch.service.deliveries import Outcome, Range
from dispatch.service.pruner import EVERY_S, Pruner
from dispatch.service.pruning import ROWS_MAX, Step
from dispatch.service.rows import Ref, fetch
from dispatch.service.schema import metadata
from dispatch.settings import Service

if TYPE_CHECKING:
    from dispatch.service.store import Store, Tx
    from tests.support.service import SteppingClock

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVE = Actor("human", "eve", "Eve")
BOT = Actor("agent", "bot", "Bot")
DAY_S = 86_400.0
PROJECT = 1
ALL = Retention(**{f"{kind}_s": DAY_S for kind in KINDS})
WITH_URL = json.dumps({"callback_url": "https://example.com/hook"})


class Bench:
    """A store whose time a test lets pass."""

    def __init__(self, store: Store, clock: SteppingClock) -> None:
        self.store = store
        self.clock = clock

    async def prune(self, retention: Retention) -> dict[str, int]:
        """Remove what is old; return how many of each kind. The turn of the service that did so before is over."""
        self.clock.step(EVERY_S)
        return dict(await Pruner(self.store, retention).go_through() or {})

    async def write(self, work: Any, *args: Any, **options: Any) -> Any:
        """Run a use case as one transaction."""
        return await self.store.write(lambda tx: work(tx, *args, **options))

    async def new(self, depends_on: tuple[int, ...] = (), **fields: Any) -> int:
        """Create a task and return its number."""
        wish = dependencies.Asked(depends_on, is_strict=False) if depends_on else None
        return int((await self.write(tasks.create, None, EVE, tasks.NewTask("t", **fields), None, wish)).id)

    async def end(self, *ids: int) -> None:
        """Cancel tasks."""
        for ident in ids:
            await self.write(moves.cancel, Ref(ident), EVE)

    async def say(self, ident: int, text: str, kind: str = "log") -> None:
        """Append to a task's thread."""
        row = await self.row(ident)
        await self.write(messages.append, row, BOT, [{"type": "text", "content": text}], kind=kind)

    async def row(self, ident: int) -> Any:
        """Return a task."""
        return await self.store.read(lambda tx: fetch(tx, Ref(ident)))

    async def texts(self, ident: int) -> list[str]:
        """Return what is on a task's thread."""
        rows = await self.store.read(lambda tx: messages.page(tx, ident, limit=1000))
        return [json.loads(row.parts)[0]["content"] for row in rows]

    async def told(self, ident: int) -> list[str]:
        """Return the events of a task's history."""
        return [line.type for line in await self.store.read(lambda tx: history.of_task(tx, ident))]

    async def left(self, *ids: int) -> set[int]:
        """Return those of the tasks that are there."""
        table = metadata.tables["tasks"]
        found = await self.store.read(lambda tx: tx.all(select(table.c.id).where(table.c.id.in_(ids))))
        return {row.id for row in found}

    async def counts(self) -> dict[str, int]:
        """Return how many rows each table has, of those that hold what belongs to tasks."""
        names = [name for name in metadata.tables if name not in ("organizations", "projects", "pruning")]
        counted = {name: select(func.count()).select_from(metadata.tables[name]) for name in names}
        return await self.store.read(lambda tx: {name: tx.one(query)[0] for name, query in counted.items()})


@pytest_asyncio.fixture(loop_scope="module")
async def bench(shared_store: tuple[Store, SteppingClock]) -> Bench:
    """A store with nothing in it but the newest event, of a task that has not ended: numbers go on from there."""
    store, clock = shared_store
    bench = Bench(store, clock)
    newest = await bench.new()
    await store.write(lambda tx: _clear(tx, newest))
    return bench


def _clear(tx: Tx, but: int) -> None:
    t = metadata.tables
    for table in reversed(metadata.sorted_tables):
        if table.name in ("organizations", "projects", "tasks"):
            continue
        kept = t["events"].c.task_id != but if table.name == "events" else true()
        tx.run(delete(table).where(kept))
    tx.run(delete(t["tasks"]).where(t["tasks"].c.id != but))


async def test_by_default_only_what_nobody_misses_goes(bench: Bench) -> None:
    """After ten years live output of ended tasks is gone, and events of messages; what people said and did is there."""
    ended, running = await bench.new(), await bench.new()
    for ident in (ended, running):
        for kind in ("log", "note", "message"):
            await bench.say(ident, kind, kind)
    await bench.end(ended)
    bench.clock.step(3650 * DAY_S)
    await bench.say(ended, "afterwards")
    assert await bench.prune(Service().retention) == {"events": 6, "log_messages": 1}
    assert await bench.texts(ended) == ["note", "message", "afterwards"]
    assert await bench.texts(running) == ["log", "note", "message"]
    assert await bench.told(ended) == ["task.created", "task.cancelled", "task.message"]
    assert await bench.told(running) == ["task.created"]
    assert await bench.prune(Service().retention) == {}


async def test_the_size_of_the_database_is_known(bench: Bench) -> None:
    """The gauge shows some bytes on every database."""
    size = await bench.store.read(lambda tx: tx.one(select(measures.database_bytes()))[0])
    assert size > 100_000


async def test_what_is_kept_for_ever_is(bench: Bench) -> None:
    """With every setting at 0 nothing goes, and no service takes its turn."""
    ident = await bench.new(payload=WITH_URL)
    await bench.say(ident, "x")
    await bench.end(ident)
    bench.clock.step(3650 * DAY_S)
    before = await bench.counts()
    assert await bench.prune(Retention()) == {}
    assert await bench.counts() == before


async def test_a_task_that_ends_again_is_pruned_again(bench: Bench) -> None:
    """The logs of a reopened task go when its second end is old, not before."""
    keep = Retention(log_messages_s=DAY_S)
    ident = await bench.new()
    await bench.say(ident, "first")
    await bench.end(ident)
    bench.clock.step(2 * DAY_S)
    assert await bench.prune(keep) == {"log_messages": 1}
    await bench.write(moves.reopen, Ref(ident), EVE)
    await bench.say(ident, "second")
    bench.clock.step(2 * DAY_S)
    assert await bench.prune(keep) == {}
    await bench.end(ident)
    bench.clock.step(2 * DAY_S)
    assert await bench.prune(keep) == {"log_messages": 1}
    assert await bench.texts(ident) == []


async def test_a_step_is_bounded_and_the_next_one_goes_on(bench: Bench) -> None:
    """One transaction removes ROWS_MAX events of messages at most; the rest goes with the next ones, and none twice."""
    ident = await bench.new()
    row = await bench.row(ident)
    text = [{"type": "text", "content": "x"}]
    await bench.store.write(lambda tx: [messages.append(tx, row, BOT, text) for _ in range(ROWS_MAX + 7)])
    await bench.new()
    bench.clock.step(2 * DAY_S)
    before_ms = bench.clock.now_ms()
    step = retention.STEPS["events"]
    assert await bench.write(step, before_ms) == Step(ROWS_MAX, more=True)
    assert len(await bench.told(ident)) == 8
    assert await bench.write(step, before_ms) == Step(7, more=False)
    assert await bench.write(step, before_ms) == Step(0, more=False)


async def test_the_numbers_of_events_go_on(bench: Bench) -> None:
    """The newest event stays whatever its age; the next one has the next number, in a service started anew too."""
    ident = await bench.new()
    await bench.say(ident, "x")
    await bench.end(ident)
    await bench.say(ident, "y")
    newest = bench.store.bus.last_seq
    bench.clock.step(3650 * DAY_S)
    await bench.prune(ALL)
    assert await bench.left(ident) == {ident}
    assert await bench.told(ident) == ["task.message"]
    other = await bench.new()
    seqs = await bench.store.read(lambda tx: [line.seq for line in history.of_task(tx, other)])
    assert seqs == [newest + 1]
    await bench.prune(ALL)
    assert await bench.left(ident, other) == {other}


async def test_the_gap_is_noted_with_the_removal(bench: Bench) -> None:
    """The number of the newest removed event is known; it grows only."""
    first = await bench.new()
    await bench.say(first, "x")
    second = bench.store.bus.last_seq
    assert await bench.store.read(pruning.gap) == 0
    bench.clock.step(2 * DAY_S)
    await bench.say(await bench.new(), "y")
    await bench.prune(ALL)
    assert await bench.store.read(pruning.gap) == second
    await bench.end(first)
    bench.clock.step(2 * DAY_S)
    await bench.new()
    await bench.prune(replace(ALL, events_s=0))
    assert await bench.left(first) == set()
    assert await bench.store.read(pruning.gap) == bench.store.bus.last_seq - 1


async def test_history_goes_after_the_end_of_the_task(bench: Bench) -> None:
    """With history_keep_s an ended task stays without its history, one that has not ended keeps all of it."""
    ended, open_one = await bench.new(), await bench.new()
    await bench.end(ended)
    bench.clock.step(2 * DAY_S)
    await bench.new()
    assert await bench.prune(Retention(history_s=DAY_S)) == {"history": 2}
    assert (await bench.told(ended), await bench.told(open_one)) == ([], ["task.created"])
    assert (await bench.row(ended)).status == "cancelled"


async def test_deliveries_that_wait_are_kept(bench: Bench) -> None:
    """What was delivered, given up or empty goes; what somebody is still to be told of stays, and its task too."""
    ids = [await bench.new(payload=WITH_URL) for _ in range(4)]
    await bench.end(*ids)
    where = Range(channels=("default",))
    rows, _ = await bench.write(deliveries.take, where, lease_ms=60_000, limit=10)
    for row, state in zip(rows, ("delivered", "failed", "empty"), strict=False):
        outcome = Outcome(state)
        await bench.write(deliveries.report, row.id, where, token=row.token, outcome=outcome)
    bench.clock.step(2 * DAY_S)
    await bench.new()
    assert await bench.prune(Retention(deliveries_s=DAY_S)) == {"deliveries": 3}
    await bench.prune(ALL)
    (kept,) = await bench.left(*ids)
    assert [(row.task_id, row.state) for row in await bench.store.read(lambda tx: deliveries.find(tx, where))] == [
        (kept, "waiting")
    ]


async def test_everything_of_a_task_goes_with_it(bench: Bench) -> None:
    """A removed task is a 404 that was never there, nothing of it is left, and its number is not given again.

    But for a UUID that its creator chose: it is not given again either.
    """
    before = await bench.counts()
    plan = creation.Plan(tasks.NewTask("t", uuid=str(uuid.uuid4()), payload=WITH_URL), needs=("gpu",), key="k")
    row, _ = await bench.write(creation.create, PROJECT, BOT, "bot", plan)
    missing = await bench.new((row.id, 9_999_999))
    for ident in (row.id, missing):
        await bench.say(ident, "log")
        await bench.say(ident, "note", "note")
    # More than one step removes.
    await bench.store.write(
        lambda tx: [messages.append(tx, row, BOT, [{"type": "text", "content": "x"}]) for _ in range(ROWS_MAX + 1)]
    )
    await bench.end(row.id, missing)
    where = Range(channels=("default",))
    (delivery,), _ = await bench.write(deliveries.take, where, lease_ms=60_000, limit=10)
    await bench.write(deliveries.report, delivery.id, where, token=1, outcome=Outcome("delivered"))
    bench.clock.step(2 * DAY_S)
    last = await bench.new()
    pruned = await bench.prune(Retention(tasks_s=DAY_S, idempotency_keys_s=DAY_S))
    assert pruned == {"tasks": 2, "idempotency_keys": 1}
    left = await bench.counts()
    new = dict.fromkeys(("tasks", "events", "idempotency_keys"), 1)
    assert left == {name: count + new.get(name, 0) for name, count in before.items()}
    for again, refused in ((plan, NotFoundError), (replace(plan, needs=()), ConflictError)):
        with pytest.raises(refused):
            await bench.write(creation.create, PROJECT, BOT, "bot", replace(again, key=None))
    with pytest.raises(NotFoundError):
        await bench.row(row.id)
    with pytest.raises(NotFoundError):
        await bench.row(row.uuid)
    assert await bench.new() > last


async def test_what_is_needed_stays(bench: Bench) -> None:
    """A task stays while anything that depends on it, or is its subtask, does; or while its parent is not old."""
    needed = await bench.new()
    waits = await bench.new((needed,))
    parent = await bench.new()
    child = await bench.new(parent_id=parent)
    open_parent = await bench.new()
    early = await bench.new(parent_id=open_parent)
    free, spoken_of = await bench.new(), await bench.new()
    await bench.end(needed, parent, early, free, spoken_of)
    bench.clock.step(2 * DAY_S)
    await bench.write(leases.claim, Ref(child), BOT, lease_ms=60_000)
    await bench.end(child)
    await bench.write(changes.update, Ref(spoken_of), EVE, {}, note="still of interest", meta_bytes_max=0)
    everything = (needed, waits, parent, child, open_parent, early, free, spoken_of)
    assert await bench.prune(ALL) != {}
    assert await bench.left(*everything) == {*everything} - {free}
    await bench.end(waits, open_parent)
    bench.clock.step(2 * DAY_S)
    await bench.new()
    await bench.prune(ALL)
    assert await bench.left(*everything) == set()


async def test_a_long_chain_and_a_circle_go_at_once(bench: Bench) -> None:
    """What depends on others goes with them in one go, over many steps, and so does what depends on each other."""
    chain = [await bench.new()]
    for _ in range(45):
        chain.append(await bench.new((chain[-1],)))
    circle = await bench.new((chain[-1] + 2,))
    circle_2 = await bench.new((circle,))
    await bench.end(*chain, circle, circle_2)
    bench.clock.step(2 * DAY_S)
    await bench.new()
    assert (await bench.prune(ALL))["tasks"] == 48


async def test_the_register_of_sealed_messages_outlives_the_task(bench: Bench) -> None:
    """A sealed message that ran in a task that is gone is refused in another one."""
    digest = "a" * 64

    async def run() -> int:
        ident = await bench.new(payload='{"encrypted":true}')
        token = (await bench.write(leases.claim, Ref(ident), BOT, lease_ms=60_000)).task.fencing_token
        await bench.write(seals.register, Ref(ident), BOT, token=token, digest=digest)
        return ident

    first = await run()
    await bench.write(deliveries.take, Range(), lease_ms=1, limit=1)
    await bench.end(first)
    (row,), _ = await bench.write(deliveries.take, Range(), lease_ms=1000, limit=1)
    await bench.write(deliveries.report, row.id, Range(), token=row.token, outcome=Outcome("empty"))
    bench.clock.step(2 * DAY_S)
    await bench.new()
    assert (await bench.prune(ALL))["tasks"] == 1
    with pytest.raises(ReusedSealError) as refused:
        await run()
    assert "first_id" not in refused.value.facts


async def test_a_repeated_request_is_known_for_a_time(bench: Bench) -> None:
    """A key is forgotten when it is old; the UUID of a task is not."""
    plan = creation.Plan(tasks.NewTask("t", uuid=str(uuid.uuid4())), key="k")
    await bench.write(creation.create, PROJECT, BOT, "bot", plan)
    bench.clock.step(2 * DAY_S)
    assert await bench.prune(Retention(idempotency_keys_s=DAY_S)) == {"idempotency_keys": 1}
    assert (await bench.write(creation.create, PROJECT, BOT, "bot", replace(plan, key=None)))[1] is False
    with pytest.raises(ConflictError):
        await bench.write(creation.create, PROJECT, BOT, "bot", replace(plan, task=replace(plan.task, title="u")))


async def test_a_repeated_request_whose_answer_is_gone_is_not_done_again(bench: Bench) -> None:
    """Where tasks are kept shorter than keys, the second request is refused and makes nothing."""
    plan = creation.Plan(tasks.NewTask("t"), key="k")
    graph = [creation.Plan(tasks.NewTask("g", uuid=str(uuid.uuid4())))]
    row, _ = await bench.write(creation.create, PROJECT, BOT, "bot", plan)
    (other,), _ = await bench.write(creation.create_graph, PROJECT, BOT, "bot", graph, "g")
    await bench.end(row.id, other.id)
    bench.clock.step(2 * DAY_S)
    await bench.new()
    assert (await bench.prune(Retention(tasks_s=DAY_S)))["tasks"] == 2
    before = await bench.counts()
    for work in (
        lambda tx: creation.create(tx, PROJECT, BOT, "bot", plan),
        lambda tx: creation.create_graph(tx, PROJECT, BOT, "bot", graph, "g"),
    ):
        with pytest.raises(NotFoundError, match="not kept any more"):
            await bench.store.write(work)
    assert await bench.counts() == before


async def test_one_service_at_a_time(bench: Bench) -> None:
    """While one service has its turn another does not remove; when it has died, the other does."""
    take = pruning.take_turn
    assert await bench.write(take, "one", for_ms=60_000)
    assert not await bench.write(take, "two", for_ms=60_000)
    if bench.store.is_shared:
        assert await Pruner(bench.store, ALL).go_through() is None
    bench.clock.step(30)
    assert await bench.write(take, "one", for_ms=60_000)
    bench.clock.step(59)
    assert not await bench.write(take, "two", for_ms=60_000)
    bench.clock.step(2)
    assert await bench.write(take, "two", for_ms=60_000)
    assert not await bench.write(take, "one", for_ms=60_000)


async def test_every_statement_of_the_pruner_goes_by_an_index(bench: Bench) -> None:
    """What the pruner runs reads no table from its beginning, however many rows that has."""
    parent = await bench.new(payload=WITH_URL)
    child = await bench.new((parent,), parent_id=parent)
    for ident in (child, parent):
        await bench.say(ident, "log")
        await bench.say(ident, "note", "note")
    await bench.write(creation.create, PROJECT, BOT, "bot", creation.Plan(tasks.NewTask("t"), key="k"))
    await bench.end(parent, child)
    (row,), _ = await bench.write(deliveries.take, Range(), lease_ms=1000, limit=1)
    await bench.write(deliveries.report, row.id, Range(), token=row.token, outcome=Outcome("delivered"))
    bench.clock.step(2 * DAY_S)
    await bench.new()
    ran: list[tuple[str, Any]] = []
    engine = bench.store._engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda _c, _k, text, values, _x, _m: ran.append((text, values)))
    pruned = await bench.prune(ALL)
    assert set(pruned) == set(KINDS)
    plans = await bench.store.read(lambda tx: _plans(tx, ran.copy(), is_postgres=bench.store.is_shared))
    assert len(plans) > 20
    # The newest event is read from the end of its table, which is one row.
    plans = {text: plan for text, plan in plans.items() if "ORDER BY events.seq DESC" not in text}
    scanned = {
        text: plan for text, plan in plans.items() if re.search(r"SCAN|Seq Scan", re.sub(r"\S* ?pruning", "", plan))
    }
    assert not scanned


def _plans(tx: Tx, ran: list[tuple[str, Any]], *, is_postgres: bool) -> dict[str, str]:
    """Return statement -> how the database would run it."""
    connection = tx._connection
    if is_postgres:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    explain = "EXPLAIN " if is_postgres else "EXPLAIN QUERY PLAN "
    return {
        text: "\n".join(str(row[-1]) for row in connection.exec_driver_sql(explain + text, values).all())
        for text, values in ran
        if text.startswith(("SELECT", "DELETE"))
    }
