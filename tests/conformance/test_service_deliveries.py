"""Deliveries in the store: written with the end of a task, taken by one, reported once. On every store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.core.lifecycle import Status
from dispatch.errors import NotFoundError, StaleLeaseError, TaskError
from dispatch.service import deliveries, dependencies, failures, leases, locks, moves, tasks, tenants
from dispatch.service.deliveries import Outcome, Range
from dispatch.service.rows import Ref, Scope
from tests.support.service import STORES, SteppingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.store import Store, Tx

EVE = Actor("human", "eve", "Eve")
WITH_URL = json.dumps({"callback_url": "https://example.com/hook"})
DONE = Outcome("delivered")
ANYWHERE = Range(channels=("default",))


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A fresh store of every kind."""
    async with STORES[request.param](SteppingClock()) as store:
        yield store


def new(tx: Tx, payload: str | None = WITH_URL, **fields: Any) -> int:
    """Create a task."""
    return int(tasks.create(tx, None, EVE, tasks.NewTask("t", payload=payload, **fields)).id)


async def found(store: Store, where: Range = ANYWHERE, **filters: Any) -> list[Any]:
    """List deliveries."""
    return list(await store.read(lambda tx: deliveries.find(tx, where, **filters)))


async def taken(store: Store, where: Range = ANYWHERE, limit: int = 20) -> tuple[list[Any], int | None]:
    """Take what is due, for a minute."""
    rows, next_ms = await store.write(lambda tx: deliveries.take(tx, where, lease_ms=60_000, limit=limit))
    return list(rows), next_ms


async def reported(store: Store, row: Any, **outcome: Any) -> Any:
    """Report on a delivery that was taken."""
    return await store.write(
        lambda tx: deliveries.report(tx, row.id, ANYWHERE, token=row.token, outcome=Outcome(**outcome))
    )


def end(tx: Tx, how: str, payload: str | None = WITH_URL) -> int:
    """Create a task and end it in one of the ways there are."""
    if how == "cascade":
        root = new(tx, None)
        wish = dependencies.Asked((root,), is_strict=True)
        task = int(tasks.create(tx, None, EVE, tasks.NewTask("t", payload=payload), None, wish).id)
        moves.cancel(tx, Ref(root), EVE)
        failures.fail_many(tx, [(Ref(task), f"Blocked: dependency #{root} (cancelled)")], EVE)
        return task
    task = new(tx, payload)
    if how in ("complete", "fail", "transition"):
        leases.claim(tx, Ref(task), EVE, lease_ms=1000)
    if how == "complete":
        moves.complete(tx, Ref(task), EVE)
    elif how == "fail":
        moves.fail(tx, Ref(task), EVE, reason="because")
    elif how == "transition":
        moves.transition(tx, Ref(task), EVE, moves.Wish(Status.IN_REVIEW))
        moves.transition(tx, Ref(task), EVE, moves.Wish(Status.COMPLETED))
    elif how == "recover":
        locks.recover(tx, Ref(task), EVE, target=Status.FAILED, note="stuck")
    else:
        {"cancel": moves.cancel, "reject": moves.reject}[how](tx, Ref(task), EVE)
    return task


WAYS = {
    "complete": "completed",
    "transition": "completed",
    "fail": "failed",
    "cascade": "failed",
    "recover": "failed",
    "cancel": "cancelled",
    "reject": "rejected",
}


async def test_every_way_to_end_writes_one_delivery(store: Store) -> None:
    """By whatever move a task ends, there is one delivery, due at once, with the ATS word of the end."""
    made = {await store.write(lambda tx, how=how: end(tx, how)): word for how, word in WAYS.items()}
    rows = await found(store)
    assert {row.task_id: row.status for row in rows} == made
    assert len(rows) == len(WAYS)
    assert {(row.state, row.tries, row.due_at) for row in rows} == {("waiting", 0, rows[0].settled_at)}
    assert all("." not in row.id for row in rows)


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (None, 0),
        ('{"callback_url": ""}', 0),
        ('{"callback_url": 7}', 0),
        ('["callback_url"]', 0),
        ('{"note": "\\"encrypted\\""}', 0),
        ('{"encrypted": "true"}', 1),
        ('{"encrypted": true}', 1),
        ('{"callback_url": "file:///etc/passwd"}', 1),
    ],
)
async def test_only_who_asks_is_told(store: Store, payload: str | None, count: int) -> None:
    """A delivery is written for a URL that is a text, and for encrypted tasks, whose URL may be sealed."""
    await store.write(lambda tx: end(tx, "cancel", payload))
    assert len(await found(store)) == count


async def test_what_is_undone_is_not_told(store: Store) -> None:
    """A transaction that fails after the task ended leaves no delivery; a refused move in a batch writes none."""

    def work(tx: Tx) -> None:
        end(tx, "cancel")
        raise NotFoundError("no")

    with pytest.raises(NotFoundError):
        await store.write(work)
    task = await store.write(lambda tx: end(tx, "complete"))
    (refused,) = await store.write(lambda tx: failures.fail_many(tx, [(Ref(task), "late")], EVE))
    assert isinstance(refused, TaskError)
    assert [row.status for row in await found(store)] == ["completed"]


async def test_ending_twice_is_told_twice(store: Store) -> None:
    """A reopened task that ends again has a second delivery with another id."""
    task = await store.write(lambda tx: end(tx, "cancel"))
    await store.write(lambda tx: moves.reopen(tx, Ref(task), EVE))
    await store.write(lambda tx: moves.reject(tx, Ref(task), EVE))
    rows = await found(store, task=task)
    assert sorted(row.status for row in rows) == ["cancelled", "rejected"]
    assert len({row.id for row in rows}) == 2


async def test_one_taker_until_the_lease_is_over(store: Store) -> None:
    """What is taken is due again when nobody reported in time, under the same id and a new token."""
    await store.write(lambda tx: end(tx, "cancel"))
    (first,), next_ms = await taken(store)
    assert (first.tries, first.token, next_ms) == (1, 1, 60_000)
    assert await taken(store) == ([], 60_000)
    store.clock.step(60)  # type: ignore[attr-defined]
    (second,), _ = await taken(store)
    assert (second.id, second.tries, second.token) == (first.id, 2, 2)
    with pytest.raises(StaleLeaseError):
        await reported(store, first, state="delivered")
    done = await reported(store, second, state="delivered")
    assert (done.state, done.taken_until, done.ended_at is not None) == ("delivered", None, True)
    assert await reported(store, second, state="failed") == done
    assert await taken(store) == ([], None)


async def test_retry_put_back_and_resend(store: Store) -> None:
    """A retry waits as long as reported; what was put back does not count; resending begins afresh."""
    await store.write(lambda tx: end(tx, "cancel"))
    (row,), _ = await taken(store)
    await reported(store, row, state="waiting", delay_ms=5_000, error="http_500")
    assert await taken(store) == ([], 5_000)
    store.clock.step(5)  # type: ignore[attr-defined]
    (row,), _ = await taken(store)
    back = await reported(store, row, state="waiting", counted=False)
    assert (back.tries, back.last_error) == (1, None)
    (row,), _ = await taken(store)
    assert (row.tries, row.token) == (2, 3)
    await reported(store, row, state="failed", error="gone")
    assert await taken(store) == ([], None)
    published: list[Any] = []
    store.bus.listen(published.extend)
    again = await store.write(lambda tx: deliveries.resend(tx, row.id, ANYWHERE, EVE))
    assert (again.state, again.tries, again.last_error, again.ended_at) == ("waiting", 0, None, None)
    assert [event.type for event in published] == ["task.updated"]
    assert [row.id for row in (await taken(store))[0]] == [row.id]


async def test_the_longest_due_first_and_no_more_than_asked(store: Store) -> None:
    """Of three that are due the two oldest are taken; the third is due at once."""
    made = []
    for _ in range(3):
        made.append(await store.write(lambda tx: end(tx, "cancel")))
        store.clock.step(1)  # type: ignore[attr-defined]
    rows, next_ms = await taken(store, limit=2)
    assert [row.task_id for row in rows] == made[:2]
    assert next_ms == 0


async def test_deliveries_are_seen_where_their_tasks_are(store: Store) -> None:
    """Channel, project of the route and projects of the key limit what is taken, listed, reported and resent."""

    def work(tx: Tx) -> int:
        tenants.create_project(tx, "default", "other", "Other", "")
        scope = Scope("default", "other")
        task = tasks.create(tx, scope, EVE, tasks.NewTask("t", payload=WITH_URL, channel="x"))
        moves.cancel(tx, Ref(task.id), EVE)
        return int(task.project_id)

    project = await store.write(work)
    blind = [ANYWHERE, Range(Scope("default", "main"), None, ("x",)), Range(None, frozenset({project + 99}), ("x",))]
    for where in blind:
        assert await taken(store, where) == ([], None)
        assert await found(store, where) == []
    (row,) = await found(store, Range())
    for where in blind:
        with pytest.raises(NotFoundError):
            await store.write(lambda tx, where=where: deliveries.resend(tx, row.id, where, EVE))
        with pytest.raises(NotFoundError):
            await store.write(lambda tx, where=where: deliveries.report(tx, row.id, where, token=1, outcome=DONE))
    assert len((await taken(store, Range(Scope("default", "other"), frozenset({project}), ("x",))))[0]) == 1
