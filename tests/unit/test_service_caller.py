"""Who calls: actor headers as they come, keys, and callers that are not served."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.errors import ForbiddenError, InvalidInputError, UnauthorizedError
from dispatch.service import caller as caller_module
from dispatch.service.access import Access, Caller
from dispatch.service.caller import authenticate, check_open, is_still_good, read_headers
from dispatch.service.clock import Clock
from dispatch.service.keys import Key, split

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "5e" * 32
TEXT = f"dsk_0123456789ab_{SECRET}"


class Shelf:
    """The part of a store that holds keys, in memory."""

    def __init__(self, *keys: Key) -> None:
        self.clock = Clock()
        self.keys = {key.id: key for key in keys}

    async def key(self, key_id: str) -> Key | None:
        """As ``Store.key``."""
        return self.keys.get(key_id)

    async def has_keys(self) -> bool:
        """As ``Store.has_keys``."""
        return bool(self.keys)


@pytest.fixture
def key() -> Key:
    """A key for a fleet."""
    return Key(
        id="0123456789ab",
        name="fleet",
        secret_sha256=hashlib.sha256(SECRET.encode()).hexdigest(),
        access="write",
        actor_type="agent",
        actor_id="dispatch",
        projects=None,
        created_at=0,
        expires_at=None,
        revoked_at=None,
    )


def _headers(**values: bytes) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value) for name, value in values.items()]


async def _call(shelf: Any, origins: frozenset[str] = frozenset(), **values: bytes) -> Caller:
    return await authenticate(shelf, read_headers(_headers(**values)), ("127.0.0.1", 1), origins)


async def _with_key(shelf: Any, text: str = TEXT, **values: bytes) -> Caller:
    return await _call(shelf, authorization=b"Bearer " + text.encode("latin-1"), **values)


# --- without keys ---------------------------------------------------------------------------------------------------


async def test_no_headers_is_an_anonymous_agent() -> None:
    """Without keys, anonymous calls of agents are allowed, as ATS allows them, and may do everything."""
    found = await _call(Shelf())
    assert (found.actor.type, found.actor.id, found.actor.name) == ("agent", "anonymous", "anonymous")
    assert (found.access, found.projects, found.is_keyed) == (Access.ADMIN, None, False)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"Claude Code", "Claude Code"),
        ("Zoë".encode("latin-1"), "Zoë"),
        ("Zoë".encode(), "Zoë"),
        (b"Zo%C3%AB", "Zoë"),
        (b"100% Bob", "100% Bob"),
        (b"a%00b%0Ac", "a b c"),
        (b"x" * 300, "x" * 255),
    ],
)
async def test_names_are_read_liberally(key: Key, raw: bytes, name: str) -> None:
    """UTF-8, Latin-1 and percent-encoding are all understood; control characters never get through."""
    assert (await _call(Shelf(), x_actor_name=raw, x_actor_id=b"i")).actor.name == name
    assert (await _with_key(Shelf(key), x_actor_name=raw)).actor.name == name


@pytest.mark.parametrize("headers", [{"x_actor_type": b"robot"}, {"x_actor_id": b"x" * 256}, {"x_actor_id": b"a%00"}])
async def test_malformed_actors_are_refused(headers: dict[str, bytes]) -> None:
    """An identity is never guessed or cut."""
    with pytest.raises(InvalidInputError):
        await _call(Shelf(), **headers)


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:8700", b"[::1]:8700", b"LOCALHOST:1", b"127.9.9.9"])
async def test_this_machine_is_served(host: bytes) -> None:
    """Every loopback name is allowed, as Host and as Origin."""
    await _call(Shelf(), host=host, origin=b"http://" + host)


FOREIGN = [
    {"host": b"evil.example"},
    {"host": b"localhost.evil.example:8700"},
    {"host": b"10.0.0.1"},
    {"origin": b"https://evil.example"},
    {"origin": b"null"},
    {"origin": b"http://localhost@evil.example"},
    {"origin": b"http://[::1"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_other_hosts_and_sites_are_refused(headers: dict[str, bytes]) -> None:
    """Without keys a rebound name in Host or a web page's Origin is refused whatever else the request says."""
    for check in (_call(Shelf(), **headers), check_open(Shelf(), read_headers(_headers(**headers)))):  # type: ignore[arg-type]
        with pytest.raises(ForbiddenError):
            await check


# --- with keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"host": b"tasks.example"},
        {"host": b"tasks.example:8700", "origin": b"https://tasks.example"},
        {"host": b"[2001:db8::1]:8700", "origin": b"http://[2001:DB8::1]:8700"},
        {"host": b"tasks.example", "origin": b"http://localhost:3000"},
        {"host": b"tasks.example", "origin": b"https://App.example"},
    ],
)
async def test_with_keys_any_host_is_served_and_listed_sites(key: Key, headers: dict[str, bytes]) -> None:
    """A key is no ambient authority: any Host will do; pages of this host, of loopback and listed ones may call."""
    origins = frozenset({"https://app.example"})
    await _call(Shelf(key), origins, authorization=b"bearer " + TEXT.encode(), **headers)


@pytest.mark.parametrize("headers", [item for item in FOREIGN if "origin" in item] + [{"origin": b"http://"}])
async def test_with_keys_other_sites_are_refused(key: Key, headers: dict[str, bytes]) -> None:
    """A page of another site is refused even with a good key."""
    with pytest.raises(ForbiddenError):
        await _with_key(Shelf(key), host=b"tasks.example", **headers)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ("agent", "dispatch", "dispatch")),
        ({"x_actor_id": b"dispatch-host", "x_actor_name": b"Host"}, ("agent", "dispatch-host", "Host")),
        ({"x_actor_id": b"dispatch", "x_actor_type": b"human"}, ("agent", "dispatch", "dispatch")),
        ({"x_actor_id": b"dispatcher"}, ("agent", "dispatch", "dispatch")),
        ({"x_actor_id": b"eve"}, ("agent", "dispatch", "dispatch")),
        ({"x_actor_id": b"DISPATCH-host"}, ("agent", "dispatch", "dispatch")),
        ({"x_actor_id": b"x" * 300, "x_actor_type": b"robot"}, ("agent", "dispatch", "dispatch")),
    ],
)
async def test_the_key_says_who_calls(key: Key, headers: dict[str, bytes], expected: tuple[str, str, str]) -> None:
    """Headers name an instance of the key's actor or nobody; the type is the key's alone."""
    actor = (await _with_key(Shelf(key), **headers)).actor
    assert (actor.type, actor.id, actor.name) == expected


async def test_a_malformed_instance_is_refused(key: Key) -> None:
    """The id of an instance is no less checked than any other."""
    with pytest.raises(InvalidInputError):
        await _with_key(Shelf(key), x_actor_id=b"dispatch-" + b"x" * 255)


async def test_an_agent_of_the_task_tools_has_no_instances(key: Key) -> None:
    """A key whose actor is a UUID speaks for that agent alone."""
    ident = "8f14e45f-ceea-467f-9a36-dedd4bea2543"
    found = await _with_key(Shelf(replace(key, actor_id=ident)), x_actor_id=f"{ident}-2".encode())
    assert found.actor.id == ident


async def test_projects_and_access_are_the_keys(key: Key) -> None:
    """What the row says is what the caller may do."""
    found = await _with_key(Shelf(replace(key, access="read", projects="[3, 5]")))
    assert (found.access, found.projects, found.is_keyed) == (Access.READ, frozenset({3, 5}), True)
    assert found.key_id == key.id


@pytest.mark.parametrize(
    "authorization",
    [
        b"Bearer " + TEXT[:-1].encode(),
        b"Bearer " + TEXT[:-1].encode() + b"0",
        b"Bearer " + TEXT.replace("0123456789ab", "0123456789aa").encode(),
        b"Bearer " + TEXT.upper().encode(),
        b"Bearer " + TEXT.encode() + b"\xe9",
        b"Bearer " + b"x" * 10_000,
        b"Bearer dsk__",
    ],
)
async def test_bad_keys_are_refused_alike(key: Key, authorization: bytes) -> None:
    """Whether the id, the secret or the form is wrong cannot be told from the answer, nor from that of an ended key."""
    said = []
    for shelf, header in (
        (Shelf(key), authorization),
        (Shelf(replace(key, revoked_at=1)), b"Bearer " + TEXT.encode()),
        (Shelf(replace(key, expires_at=1)), b"Bearer " + TEXT.encode()),
    ):
        with pytest.raises(UnauthorizedError) as caught:
            await _call(shelf, authorization=header)
        said.append(caught.value.as_body())
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Basic eDp5")], [(b"authorization", b"Bearer ")]])
async def test_with_keys_nobody_is_served_without(key: Key, headers: list[tuple[bytes, bytes]]) -> None:
    """One row, even that of a revoked key, closes the door."""
    for row in (key, replace(key, revoked_at=1)):
        with pytest.raises(UnauthorizedError, match="carries no API key"):
            await authenticate(Shelf(row), read_headers(headers))  # type: ignore[arg-type]


async def test_two_authorizations_are_refused(key: Key) -> None:
    """A proxy may have looked at the other one."""
    good = (b"authorization", b"Bearer " + TEXT.encode())
    with pytest.raises(UnauthorizedError):
        await authenticate(Shelf(key), read_headers([good, good]))  # type: ignore[arg-type]


async def test_the_comparison_takes_constant_time(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are compared by hmac.compare_digest, for unknown ids as well."""
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    await _with_key(Shelf(key))
    with pytest.raises(UnauthorizedError):
        await _with_key(Shelf(replace(key, id="ffffffffffff")))
    assert [len(a) == len(b) == 64 for a, b in compared] == [True, True]


async def test_who_was_let_in_is_looked_at_again(key: Key) -> None:
    """A connection is good as long as its key is; one without a key only while there are none."""
    shelf: Any = Shelf(key)
    found = await _with_key(shelf)
    assert await is_still_good(shelf, found)
    for ended in (replace(key, revoked_at=1), replace(key, expires_at=shelf.clock.now_ms())):
        assert not await is_still_good(Shelf(ended), found)  # type: ignore[arg-type]
    keyless: Any = Shelf()
    someone = await _call(keyless)
    assert await is_still_good(keyless, someone)
    assert not await is_still_good(shelf, someone)


def test_keys_are_recognised() -> None:
    """Only the exact form is a key, so that scanners can find one and nothing else is looked up."""
    assert split(TEXT) == ("0123456789ab", SECRET)
    for text in ("", "dsk_", TEXT + "0", " " + TEXT, TEXT + "\n", TEXT.upper(), TEXT.replace("_", "-")):
        assert split(text) is None


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the module logs."""
    lines: list[dict[str, Any]] = []

    class Log:
        """Takes lines."""

        def warning(self, event: str, **facts: Any) -> None:
            """Keep one."""
            lines.append({"event": event, **facts})

    monkeypatch.setattr(caller_module, "_log", Log())
    monkeypatch.setattr(caller_module, "_refusals", caller_module._Refusals())
    return lines


async def test_a_flood_of_guesses_is_no_flood_of_lines(
    key: Key, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten lines in ten seconds, with the public id at most; what was left out is counted in the next line."""
    for _ in range(1_000):
        with pytest.raises(UnauthorizedError):
            await _with_key(Shelf(key), TEXT[:-1] + "0")
    assert [line["event"] for line in logged] == ["key_refused"] * 10
    assert logged[0] == {"event": "key_refused", "key": key.id, "peer": "127.0.0.1", "unlogged": 0}
    monkeypatch.setattr(caller_module, "_REFUSALS_EVERY_S", 0.0)
    caller_module._refusals._until = 0.0
    with pytest.raises(UnauthorizedError):
        await _with_key(Shelf(key), "dsk_junk")
    assert logged[-1] == {"event": "key_refused", "key": "", "peer": "127.0.0.1", "unlogged": 990}
