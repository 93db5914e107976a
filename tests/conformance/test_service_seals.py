"""The register of sealed messages, and the mark on sealed tasks, on every store."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.errors import NotFoundError, ReusedSealError, StaleLeaseError
from dispatch.service import creation, leases, moves, seals, tasks, tenants, wire
from dispatch.service.rows import Ref, Scope, fetch

if TYPE_CHECKING:
    from dispatch.service.store import Store
    from tests.support.service import SteppingClock

ANN = Actor("agent", "ann", "Ann")
EVE = Actor("human", "eve", "Eve")
LEASE_MS = 60_000


class Bench:
    """A store, with tasks that Ann has claimed."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @staticmethod
    def digest() -> str:
        """Return a digest that nobody has used."""
        return secrets.token_hex(32)

    async def claimed(self, scope: Scope | None = None) -> int:
        """Return a task with a live lease, token 1."""
        row = await self.store.write(lambda tx: tasks.create(tx, scope, ANN, tasks.NewTask(title="a task")))
        await self.claim(row.id)
        return int(row.id)

    async def claim(self, ident: int) -> int:
        """Claim a task and return the token."""
        granted = await self.store.write(lambda tx: leases.claim(tx, Ref(ident), ANN, lease_ms=LEASE_MS))
        return int(granted.task.fencing_token)

    async def seal(self, ident: int, digest: str, token: int = 1) -> Any:
        """Register a digest."""
        return await self.store.write(lambda tx: seals.register(tx, Ref(ident), ANN, token=token, digest=digest))

    async def told(self, ident: int, digest: str) -> Any:
        """Ask, without a token, whether a digest is this task's."""
        return await self.store.write(lambda tx: seals.register(tx, Ref(ident), EVE, token=None, digest=digest))

    async def row(self, ident: int) -> Any:
        """Return the task."""
        return await self.store.read(lambda tx: fetch(tx, Ref(ident)))


@pytest.fixture
def bench(shared_store: tuple[Store, SteppingClock]) -> Bench:
    """The store."""
    return Bench(shared_store[0])


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_same_task_may_say_it_again(bench: Bench) -> None:
    """Repeated, and in a later attempt with a new token, the same digest of the same task is accepted."""
    ident, digest = await bench.claimed(), bench.digest()
    for _ in range(2):
        assert (await bench.seal(ident, digest)).id == ident
    await bench.store.write(lambda tx: leases.release(tx, Ref(ident), ANN, token=1, counted=True))
    assert await bench.claim(ident) == 2
    assert (await bench.seal(ident, digest, 2)).id == ident


async def test_another_task_is_refused_for_good(bench: Bench) -> None:
    """The digest stays with the first task, even when that has ended; the second is not changed by the refusal."""
    first, digest = await bench.claimed(), bench.digest()
    await bench.seal(first, digest)
    await bench.store.write(lambda tx: moves.complete(tx, Ref(first), ANN, outputs="[]", token=1))
    second = await bench.claimed()
    before = await bench.row(second)
    for _ in range(2):
        with pytest.raises(ReusedSealError) as caught:
            await bench.seal(second, digest)
        assert caught.value.facts == {"first_id": first}
    assert await bench.row(second) == before
    await bench.seal(second, bench.digest())


async def test_another_project_is_refused_as_well_and_learns_nothing(bench: Bench) -> None:
    """A message copied into another project is a replay too; which task it came from stays untold."""
    scope = Scope("default", f"p-{bench.digest()[-8:]}")
    await bench.store.write(lambda tx: tenants.create_project(tx, "default", scope.project, "P", ""))
    first, digest = await bench.claimed(), bench.digest()
    await bench.seal(first, digest)
    other = await bench.claimed(scope)
    with pytest.raises(ReusedSealError) as caught:
        await bench.seal(other, digest)
    assert caught.value.facts == {}


async def test_of_two_at_once_one_wins(bench: Bench) -> None:
    """Sixteen tasks with one message at the same moment: one of them may run."""
    idents, digest = [await bench.claimed() for _ in range(16)], bench.digest()
    found = await asyncio.gather(*(bench.seal(ident, digest) for ident in idents), return_exceptions=True)
    assert sum(isinstance(one, ReusedSealError) for one in found) == 15


async def test_a_stale_token_registers_nothing(bench: Bench) -> None:
    """An attempt that is over cannot use up a message; neither can one of a task that does not exist."""
    ident, digest = await bench.claimed(), bench.digest()
    for token in (0, 2):
        with pytest.raises(StaleLeaseError):
            await bench.seal(ident, digest, token)
    await bench.store.write(lambda tx: moves.cancel(tx, Ref(ident), EVE))
    with pytest.raises(StaleLeaseError):
        await bench.seal(ident, digest)
    with pytest.raises(NotFoundError):
        await bench.seal(10**9, digest)
    await bench.seal(await bench.claimed(), digest)


@pytest.mark.parametrize(
    ("payload", "sealed"),
    [
        ({"encrypted": True, "nonce": "n"}, True),
        ({"encrypted": "yes"}, True),
        ({"encrypted": False}, False),
        ({"inner": {"encrypted": True}}, False),
        ([{"encrypted": True}], False),
        ('"encrypted"', False),
        (None, False),
    ],
)
async def test_the_mark_follows_the_payload(bench: Bench, payload: Any, *, sealed: bool) -> None:
    """It is there from the creation on, in every form of the task, and changes with the payload and nothing else."""
    text = None if payload is None else wire.dumps(payload)
    new = tasks.NewTask(title="a task", payload=text)
    row = await bench.store.write(lambda tx: tasks.create(tx, None, ANN, new))
    for shown in (wire.task_json(row, 0), wire.thin_task_json(row), wire.partial_task_json(row, ["sealed"], 0)):
        assert json.loads(shown)["sealed"] is sealed

    async def patched(**fields: Any) -> bool:
        ref = Ref(row.id)
        work = await bench.store.write(
            lambda tx: tasks.patch(tx, ref, ANN, fields=fields, status=None, default_lease_ms=LEASE_MS)
        )
        return bool(work.sealed)

    assert await patched(title="other") is sealed
    assert await patched(payload='{"encrypted":true}') is True
    assert await patched(payload=text) is sealed
    plan = creation.Plan(new)
    made, _ = await bench.store.write(lambda tx: creation.create(tx, row.project_id, ANN, "ann", plan))
    assert made.sealed is sealed


async def test_who_tells_of_an_end_asks_without_a_token(bench: Bench) -> None:
    """A message belongs to the task that was begun, or has ended, first; asking changes nothing of the task."""
    begun, copy, ended = [await bench.claimed() for _ in range(3)]
    digest, other = bench.digest(), bench.digest()
    await bench.seal(begun, digest)
    before = await bench.row(begun)
    assert (await bench.told(begun, digest)).fencing_token == before.fencing_token
    with pytest.raises(ReusedSealError):
        await bench.told(copy, digest)
    await bench.told(ended, other)
    with pytest.raises(ReusedSealError):
        await bench.seal(copy, other)
