"""Large graphs in the store: what one transaction does stays bounded. On every store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.service import cascade, dependencies, dependents, doomed, failures, leases, moves, tasks
from dispatch.service.rows import Ref, fetch
from tests.support.service import FAST_STORES, STORES, SteppingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.events import Event
    from dispatch.service.store import Store, Tx

EVE = Actor("human", "eve", "Eve")


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A fresh store of every kind."""
    async with STORES[request.param](SteppingClock()) as store:
        yield store


def fan(tx: Tx, root: int | None, count: int, **fields: Any) -> list[int]:
    """Create tasks that depend on one."""
    wish = None if root is None else dependencies.Asked((root,), is_strict=True)
    return [tasks.create(tx, None, EVE, tasks.NewTask("t", **fields), None, wish).id for _ in range(count)]


@pytest.mark.parametrize("store", FAST_STORES, indirect=True)
async def test_one_completion_tells_of_the_most_urgent(store: Store) -> None:
    """Of very many that became ready READY_MAX are told of, the urgent first; all of them can be claimed."""
    published: list[Event] = []
    store.bus.listen(published.extend)

    def work(tx: Tx) -> tuple[list[int], list[int]]:
        (root,) = fan(tx, None, 1)
        low = fan(tx, root, dependents.READY_MAX)
        high = fan(tx, root, 3, priority=9)
        leases.claim(tx, Ref(root), EVE, lease_ms=1000)
        moves.complete(tx, Ref(root), EVE)
        return low, high

    low, high = await store.write(work)
    ready = [event.task.id for event in published if event.type == "task.ready"]
    assert ready == [*high, *low[:-3]]
    assert (
        await store.write(lambda tx: leases.claim(tx, Ref(low[-1]), EVE, lease_ms=1000))
    ).task.status == "in_progress"


@pytest.mark.parametrize("store", FAST_STORES, indirect=True)
async def test_a_wide_cascade_is_reopened_in_several_transactions(store: Store) -> None:
    """The farthest come first, so that each repetition finds the rest; then nothing is left."""

    def work(tx: Tx) -> tuple[int, int]:
        (root,) = fan(tx, None, 1)
        level = fan(tx, root, 1)
        leaves = fan(tx, level[0], cascade.REOPENED_MAX)
        moves.cancel(tx, Ref(root), EVE)
        reason = "Blocked: dependency #1 (cancelled)"
        moves.fail(tx, Ref(level[0]), EVE, reason=reason)
        failures.fail_many(tx, [(Ref(ident), reason) for ident in leaves], EVE)
        return root, level[0]

    root, middle = await store.write(work)
    first = await store.write(lambda tx: cascade.reopen(tx, Ref(root), EVE))
    assert (len(first.dependents), first.more, first.task.status) == (cascade.REOPENED_MAX, True, "todo")
    assert (await store.read(lambda tx: fetch(tx, Ref(middle)))).status == "failed"
    second = await store.write(lambda tx: cascade.reopen(tx, Ref(root), EVE))
    assert ([row.id for row in second.dependents], second.more) == ([middle], False)


@pytest.mark.parametrize("store", FAST_STORES, indirect=True)
async def test_a_deep_chain_is_no_circle(store: Store) -> None:
    """A thousand tasks in a row are looked through without a mistake; closed, they are a circle."""

    def work(tx: Tx) -> tuple[list[int], list[int]]:
        chain = fan(tx, None, 1)
        for _ in range(999):
            chain += fan(tx, chain[-1], 1)
        before = doomed.circle(tx, chain[-1])
        dependencies.connect(tx, chain[0], dependencies.Found((chain[-1],)))
        return before, doomed.circle(tx, chain[500])

    before, after = await store.write(work)
    assert before == []
    assert len(after) == 1001
    assert after[0] == after[-1]
