"""Orders of an operator in the store, on every store: given, changed, over, taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.service import steering
from tests.support.service import STORES, SteppingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.store import Store

EVE = Actor("human", "eve", "Eve")


@pytest.fixture(params=STORES)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Store, SteppingClock]]:
    """A fresh store of every kind, and its clock."""
    clock = SteppingClock()
    async with STORES[request.param](clock) as store:
        yield store, clock


async def shown(store: Store) -> list[tuple[Any, ...]]:
    """The orders in force."""
    return [(row.kind, row.name, row.note, row.by) for row in await store.read(steering.in_force)]


async def test_an_order_is_kept_changed_and_taken_back(bench: tuple[Store, SteppingClock]) -> None:
    """One order for each thing: a second one replaces the first, and taking it back twice is no mistake."""
    store, _ = bench
    await store.write(lambda tx: steering.put(tx, "queue", "gpu", EVE, note="hot"))
    await store.write(lambda tx: steering.put(tx, "channel", "a/b", EVE))
    row = await store.write(lambda tx: steering.put(tx, "queue", "gpu", EVE, note="cold"))
    assert (row.note, row.until, row.at) == ("cold", None, store.clock.now_ms())
    assert await shown(store) == [("channel", "a/b", "", "eve"), ("queue", "gpu", "cold", "eve")]
    assert await store.write(lambda tx: steering.remove(tx, "queue", "gpu")) is True
    assert await store.write(lambda tx: steering.remove(tx, "queue", "gpu")) is False
    assert await shown(store) == [("channel", "a/b", "", "eve")]


async def test_an_order_ends_by_itself(bench: tuple[Store, SteppingClock]) -> None:
    """From ``until`` on it is not told any more, without anybody's doing; the next change forgets it."""
    store, clock = bench
    until = store.clock.now_ms() + 60_000
    await store.write(lambda tx: steering.put(tx, "host", "h1", EVE, until_ms=until))
    clock.step(59.9)
    assert await shown(store) == [("host", "h1", "", "eve")]
    clock.step(0.2)
    assert await shown(store) == []
    assert await store.write(lambda tx: steering.remove(tx, "host", "h1")) is False
