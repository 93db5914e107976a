"""Failing many tasks in one transaction: each is judged as if it came alone, all are written at once."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.core.graph import REASON_BEGINS
from dispatch.core.lifecycle import Status
from dispatch.errors import IllegalMoveError, LeaseHeldError, NotFoundError, TaskError
from dispatch.service import cascade, dependencies, dependents, doomed, failures, history, leases, moves, tasks
from dispatch.service.rows import Ref, Scope, fetch
from tests.support.service import FAST_STORES, STORES, SteppingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dispatch.service.store import Store, Tx

EVE = Actor("human", "eve", "Eve")
FLEET = Actor("agent", "fleet", "Fleet")
BOB = Actor("agent", "bob", "Bob")
LEASE_MS = 60_000
LATER = 1_000_000
"""The number of a task that will never exist."""


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A fresh store of every kind."""
    async with STORES[request.param](SteppingClock()) as store:
        yield store


def create(tx: Tx, *needs: int | str, **fields: Any) -> int:
    """Create a task that depends on others, which may not exist."""
    wish = dependencies.Asked(needs, is_strict=False) if needs else None
    return int(tasks.create(tx, None, EVE, tasks.NewTask("t", **fields), None, wish).id)


def claim(tx: Tx, ident: int, actor: Actor) -> None:
    """Take a task."""
    leases.claim(tx, Ref(ident), actor, lease_ms=LEASE_MS)


def told(tx: Tx, ident: int) -> list[tuple[Any, ...]]:
    """Return the lines of a task's history, without their numbers."""
    return [
        (line.type, line.from_status, line.to_status, line.note, line.actor_id, line.token)
        for line in history.of_task(tx, ident)
    ]


async def fail(store: Store, items: Sequence[tuple[Ref, str | None]], actor: Actor = FLEET) -> list[Any | TaskError]:
    """Fail many."""
    return await store.write(lambda tx: failures.fail_many(tx, items, actor))


async def test_a_batch_of_mixed_outcomes(store: Store) -> None:
    """Of each task that fails all is told and written; each refusal names its reason and changes nothing."""

    def work(tx: Tx) -> dict[str, int]:
        root, open_one = create(tx), create(tx)
        moves.cancel(tx, Ref(root), EVE)
        found = {"open": open_one, "direct": create(tx, root)}
        found["behind"] = create(tx, found["direct"])
        found |= {"waits": create(tx, open_one), "missing": create(tx, LATER), "free": create(tx)}
        found |= {"failed": create(tx, root), "theirs": create(tx), "ours": create(tx)}
        moves.fail(tx, Ref(found["failed"]), EVE, reason="before")
        claim(tx, found["theirs"], BOB)
        claim(tx, found["ours"], FLEET)
        return found

    made = await store.write(work)
    names = ("direct", "behind", "direct", "waits", "missing", "free", "failed", "theirs", "ours", "unknown", "ours")
    reason = "Blocked: dependency #1 (cancelled)"
    results = await fail(store, [(Ref(made.get(name, LATER)), reason) for name in names])
    refused = {at: type(one) for at, one in enumerate(results) if isinstance(one, TaskError)}
    assert refused == {
        2: IllegalMoveError,  # named twice, and nobody's: not known for a repetition
        3: IllegalMoveError,
        5: IllegalMoveError,
        6: IllegalMoveError,
        7: LeaseHeldError,
        9: NotFoundError,
    }
    assert [results[at].id for at in (0, 1, 4, 8)] == [made[name] for name in ("direct", "behind", "missing", "ours")]
    assert results[10] == results[8]  # the holder's report came twice: the same answer
    for at in (0, 1, 4, 8):
        assert (results[at].status, results[at].reason, results[at].held) == ("failed", reason, False)
        assert await store.read(lambda tx, at=at: fetch(tx, Ref(results[at].id))) == results[at]
    lines = await store.read(lambda tx: {name: told(tx, ident) for name, ident in made.items()})
    for name in ("direct", "behind", "missing"):
        assert lines[name][1:] == [
            ("task.step", "todo", "in_progress", None, "fleet", 0),
            ("task.failed", "in_progress", "failed", reason, "fleet", 0),
        ]
    assert lines["ours"][2:] == [("task.failed", "in_progress", "failed", reason, "fleet", 1)]
    assert [len(lines[name]) for name in ("open", "waits", "free", "failed", "theirs")] == [1, 1, 1, 3, 2]


async def test_order_decides_within_a_batch(store: Store) -> None:
    """A task that comes before the one that dooms it is refused; the same batch again fails it."""

    def work(tx: Tx) -> tuple[int, int, int]:
        root = create(tx)
        moves.cancel(tx, Ref(root), EVE)
        first = create(tx, root)
        return first, (second := create(tx, first)), create(tx, second)

    first, second, third = await store.write(work)
    items = [(Ref(ident), "x") for ident in (third, first, second)]
    assert [isinstance(one, TaskError) for one in await fail(store, items)] == [True, False, False]
    assert [isinstance(one, TaskError) for one in await fail(store, items)] == [False, True, True]
    assert await fail(store, []) == []


async def test_tasks_are_looked_up_where_the_caller_may_look(store: Store) -> None:
    """By number or UUID, in the project of the route and among those of the key; otherwise there is no such task."""

    def work(tx: Tx) -> Any:
        one, two, three = create(tx), create(tx), create(tx)
        for ident in (one, two, three):
            claim(tx, ident, FLEET)
        return fetch(tx, Ref(one)), fetch(tx, Ref(two)), fetch(tx, Ref(three))

    one, two, three = await store.write(work)
    here = Scope("default", "main")
    results = await fail(
        store,
        [
            (Ref(one.id, Scope("default", "other")), "x"),
            (Ref(one.id, Scope("other", "main")), "x"),
            (Ref(one.id, within=frozenset({LATER})), "x"),
            (Ref(one.uuid, within=frozenset()), "x"),
            (Ref(one.id, here, frozenset({one.project_id})), "x"),
            (Ref(one.uuid), "x"),
            (Ref(two.uuid, here), "x"),
            (Ref(three.id, within=frozenset({three.project_id})), "x"),
        ],
    )
    assert [type(result) for result in results[:4]] == [NotFoundError] * 4
    assert [result.id for result in results[4:]] == [one.id, one.id, two.id, three.id]


@dataclass
class World:
    """A random graph in random states, the same for the same seed, and a batch over it."""

    seed: int
    ids: list[int] = field(default_factory=list)

    def build(self, tx: Tx) -> None:
        """Create it."""
        chance = random.Random(self.seed)
        for _ in range(24):
            known = chance.sample(self.ids, min(len(self.ids), chance.randrange(3)))
            missing = [LATER] if chance.random() < 0.1 else []
            self.ids.append(create(tx, *known, *missing, needs_review=chance.random() < 0.2))
        for ident in chance.sample(self.ids, 3):  # may close a circle
            row = fetch(tx, Ref(ident))
            wish = dependencies.Asked(tuple(chance.sample(self.ids, 2)), is_strict=False)
            dependencies.replace(tx, Ref(ident), row, wish)
        for ident in self.ids:
            with contextlib.suppress(TaskError):
                self._move(tx, ident, chance.choice([FLEET, BOB]), chance.randrange(6))

    @staticmethod
    def _move(tx: Tx, ident: int, actor: Actor, way: int) -> None:
        if way == 0:
            moves.cancel(tx, Ref(ident), EVE)
        elif way <= 3:
            claim(tx, ident, actor)
            if way == 1:
                moves.complete(tx, Ref(ident), actor)
            elif way == 2:
                moves.fail(tx, Ref(ident), actor, reason="a")

    def items(self) -> list[tuple[Ref, str | None]]:
        """Return the batch: some tasks twice, some unknown."""
        chance = random.Random(-self.seed - 1)
        idents = [chance.choice([*self.ids, LATER]) for _ in range(30)]
        return [(Ref(ident), chance.choice(["a", "a", "b", "ä \U0001f600 \"'\\", "", None])) for ident in idents]


def one_by_one(tx: Tx, items: Sequence[tuple[Ref, str | None]], actor: Actor) -> list[Any | TaskError]:
    """Do what ``fail_many`` does, in the simplest way."""
    found: list[Any | TaskError] = []
    for ref, reason in items:
        try:
            found.append(moves.fail(tx, ref, actor, reason=reason))
        except TaskError as refusal:
            found.append(refusal)
    return found


def seen(one: Any) -> Any:
    """Return all of a row or a refusal that is the same in another store."""
    if isinstance(one, TaskError):
        return type(one), str(one)
    return {name: value for name, value in one._mapping.items() if name != "uuid"}


SEEDS = {"sqlite": 6, "postgresql": 2}
"""A store for each seed and way; on PostgreSQL a store takes a quarter of a second."""


@pytest.mark.parametrize("engine", STORES)
async def test_a_batch_does_what_its_parts_would(engine: str) -> None:
    """In random graphs, states and batches: the same answers, rows and history as one call for each."""
    outcomes: set[str] = set()
    for seed in range(SEEDS[engine]):
        results = []
        clock = SteppingClock()
        for work in (one_by_one, failures.fail_many):
            async with STORES[engine](clock) as store:
                world = World(seed)
                await store.write(world.build)
                answers = await store.write(lambda tx, work=work, world=world: work(tx, world.items(), FLEET))
                left = await store.read(
                    lambda tx, world=world: [(seen(fetch(tx, Ref(i))), told(tx, i)) for i in world.ids]
                )
                results.append(([seen(one) for one in answers], left))
                outcomes |= {type(one).__name__ if isinstance(one, TaskError) else one.status for one in answers}
        assert results[0] == results[1], f"seed {seed}"
    assert outcomes == {"failed", "IllegalMoveError", "LeaseHeldError", "NotFoundError"}


class CountingTx:
    """A transaction that counts its statements."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("one", "all", "run"):
            self.count += 1
        return getattr(self._tx, name)


async def chain(store: Store, length: int) -> list[int]:
    """Create a task and so many in a row behind it."""
    ids = [await store.write(create)]
    while len(ids) <= length:
        # One transaction for all of them would last too long on a busy machine.
        for_now = min(200, length + 1 - len(ids))
        ids += await store.write(lambda tx, first=ids[-1], count=for_now: _row(tx, first, count))
    return ids


def _row(tx: Tx, first: int, count: int) -> list[int]:
    ids = [first]
    for _ in range(count):
        ids.append(create(tx, ids[-1]))
    return ids[1:]


@pytest.mark.parametrize("store", FAST_STORES, indirect=True)
async def test_many_and_deep_cost_few_statements(store: Store) -> None:
    """However long a chain is: failing all of it, looking for a circle and counting what is behind ask a few times."""
    length = 1_000
    ids = await chain(store, length)

    def work(tx: Tx) -> int:
        counting: Any = CountingTx(tx)
        assert dependents.behind(counting, ids[0])[1:] == (length, False)
        assert doomed.circle(counting, ids[-1]) == []
        refused = failures.fail_many(counting, [(Ref(ident), None) for ident in ids[-500:]], FLEET)
        assert all(isinstance(one, IllegalMoveError) for one in refused)
        moves.cancel(tx, Ref(ids[0]), EVE)
        for start in (1, 501):
            items = [(Ref(ident), f"Blocked: dependency #{ident - 1} (failed)") for ident in ids[start : start + 500]]
            assert all(one.status == Status.FAILED for one in failures.fail_many(counting, items, FLEET))
        return int(counting.count)

    assert await store.write(work) < 40


@pytest.mark.parametrize("store", FAST_STORES, indirect=True)
async def test_a_deep_cascade_is_reopened(store: Store) -> None:
    """A chain is opened from its far end on, however deep; what another failure keeps stays failed."""
    ids = await chain(store, cascade.REOPENED_MAX + 20)

    def work(tx: Tx) -> int:
        other = create(tx)
        kept = create(tx, ids[-1], other)
        for ident in (ids[0], other):
            moves.cancel(tx, Ref(ident), EVE)
        reason = f"{REASON_BEGINS} #1 (cancelled)"
        failures.fail_many(tx, [(Ref(ident), reason) for ident in (*ids[1:], kept)], FLEET)
        return kept

    kept = await store.write(work)
    first = await store.write(lambda tx: cascade.reopen(tx, Ref(ids[0]), EVE))
    assert [row.id for row in first.dependents] == ids[21:]
    assert (first.kept, first.more) == ([kept], True)
    second = await store.write(lambda tx: cascade.reopen(tx, Ref(ids[0]), EVE))
    assert [row.id for row in second.dependents] == ids[1:21]
    assert (second.kept, second.more) == ([], False)
