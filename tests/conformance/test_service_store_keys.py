"""What every store must do with API keys. Each store in STORES runs the whole file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.errors import ConflictError, LeaseHeldError, NotFoundError, UnauthorizedError
from dispatch.service import keys, leases, tasks, tenants
from dispatch.service.access import Access
from dispatch.service.caller import authenticate, is_still_good, read_headers
from dispatch.service.rows import Ref, Scope, fetch
from tests.support.service import STORES, SteppingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.keys import Key
    from dispatch.service.store import Store

ANN = Actor("agent", "ann", "Ann")
BOB = Actor("agent", "bob", "Bob")


@pytest.fixture
def clock() -> SteppingClock:
    """Time as the test makes it."""
    return SteppingClock()


@pytest.fixture(params=sorted(STORES))
async def store(request: pytest.FixtureRequest, clock: SteppingClock) -> AsyncIterator[Store]:
    """A fresh store of every kind."""
    async with STORES[request.param](clock) as made:
        yield made


async def change(store: Store, work: Any) -> Any:
    """Make or revoke keys. Another process does that, and a store that keeps what it read is then told."""
    done = await store.write(work)
    if isinstance(store, keys.KeptKeys):
        store.forget_keys()
    return done


async def make(store: Store, name: str = "k", **options: Any) -> tuple[Key, str]:
    """Make a key."""
    return await change(store, lambda tx: keys.create(tx, name, **{"access": Access.WRITE, "actor": ANN, **options}))


def bearer(text: str) -> Any:
    """Return the headers of a request with this key."""
    return read_headers([(b"authorization", b"Bearer " + text.encode())])


async def test_keys_are_seen_as_they_are_at_the_moment(store: Store, clock: SteppingClock) -> None:
    """Made, expired and revoked keys are what they are in the very next look."""
    assert not await store.has_keys()
    clock.step(1)
    key, text = await make(store, expires_at=clock.now_ms() + 5_000)
    assert await store.has_keys()
    assert await store.key(key.id) == key
    assert await store.key("ffffffffffff") is None
    caller = await authenticate(store, bearer(text))
    assert (caller.actor, caller.key_id) == (Actor("agent", "ann", "ann"), key.id)
    clock.step(4.999)
    assert await is_still_good(store, caller)
    clock.step(0.001)
    assert not await is_still_good(store, caller)
    other, text = await make(store, "other")
    await authenticate(store, bearer(text))
    await change(store, lambda tx: keys.revoke(tx, other.id))
    revoked = await store.key(other.id)
    assert revoked is not None
    assert revoked.revoked_at == clock.now_ms()
    with pytest.raises(UnauthorizedError):
        await authenticate(store, bearer(text))
    assert await store.has_keys()


async def test_the_secret_is_not_in_the_row(store: Store) -> None:
    """A row holds the hash; the text is the id and a secret, never twice the same."""
    one, text = await make(store, "one")
    _, again = await make(store, "two")
    ident, secret = keys.split(text) or ("", "")
    assert ident == one.id
    assert secret not in repr(one)
    assert keys.vouches(one, secret, 0)
    assert not keys.vouches(None, secret, 0)
    assert (keys.split(again) or ("", ""))[1] != secret


async def test_names_projects_and_revocation(store: Store) -> None:
    """A name is taken until its key is revoked; unknown projects and keys are refused; revoking twice is no change."""
    key, _ = await make(store, "ci")
    with pytest.raises(ConflictError, match=key.id):
        await make(store, "ci")
    with pytest.raises(NotFoundError):
        await make(store, "x", scopes=[Scope("no", "where")])
    assert await change(store, lambda tx: keys.revoke(tx, "ci")) == (await store.key(key.id), True)
    assert (await change(store, lambda tx: keys.revoke(tx, key.id)))[1] is False
    with pytest.raises(NotFoundError):
        await change(store, lambda tx: keys.revoke(tx, "ci"))
    again, _ = await make(store, "ci", scopes=[tenants.DEFAULT])
    assert {found.id for found in await store.read(keys.every)} == {key.id, again.id}
    assert await store.read(lambda tx: keys.project_names(tx, [1])) == ["default/main"]


async def test_a_reference_can_be_bound_to_projects_and_to_a_holder(store: Store) -> None:
    """Out of its projects a task does not exist; a reporter must be its holder, if it has one."""
    new = tasks.NewTask("t")
    row = await store.write(lambda tx: tasks.create(tx, None, ANN, new))
    cases = ((None, True), (frozenset({row.project_id}), True), (frozenset({99}), False), (frozenset(), False))
    for within, found in cases:
        for ident in (row.id, row.uuid):
            ref = Ref(ident, None, within)
            if found:
                assert (await store.read(lambda tx, ref=ref: fetch(tx, ref))).id == row.id
            else:
                with pytest.raises(NotFoundError):
                    await store.read(lambda tx, ref=ref: fetch(tx, ref))
        assert (await store.read(lambda tx, w=within: tasks.stats(tx, w)))["total"] == int(found)
    await store.write(lambda tx: leases.claim(tx, Ref(row.id), ANN, lease_ms=60_000))
    with pytest.raises(LeaseHeldError):
        await store.write(lambda tx: leases.renew(tx, Ref(row.id, reporter=BOB), BOB, token=1))
    await store.write(lambda tx: leases.renew(tx, Ref(row.id, reporter=ANN), ANN, token=1))
    for _ in range(2):
        await store.write(lambda tx: leases.release(tx, Ref(row.id, reporter=ANN), ANN, token=1))
