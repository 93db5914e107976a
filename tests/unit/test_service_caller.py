"""Who calls: actor headers as they come, and callers that are not served."""

from __future__ import annotations

import pytest

from dispatch.errors import ForbiddenError, InvalidInputError
from dispatch.service.caller import read_headers


def _headers(**values: bytes) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value) for name, value in values.items()]


def test_no_headers_is_an_anonymous_agent() -> None:
    """Anonymous calls of agents are allowed, as ATS allows them."""
    actor, length = read_headers([])
    assert (actor.type, actor.id, actor.name, length) == ("agent", "anonymous", "anonymous", None)


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
def test_names_are_read_liberally(raw: bytes, name: str) -> None:
    """UTF-8, Latin-1 and percent-encoding are all understood; control characters never get through."""
    assert read_headers(_headers(x_actor_name=raw, x_actor_id=b"i"))[0].name == name


@pytest.mark.parametrize("headers", [{"x_actor_type": b"robot"}, {"x_actor_id": b"x" * 256}, {"x_actor_id": b"a%00"}])
def test_malformed_actors_are_refused(headers: dict[str, bytes]) -> None:
    """An identity is never guessed or cut."""
    with pytest.raises(InvalidInputError):
        read_headers(_headers(**headers))


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:8700", b"[::1]:8700", b"LOCALHOST:1", b"127.9.9.9"])
def test_this_machine_is_served(host: bytes) -> None:
    """Every loopback name is allowed, as Host and as Origin."""
    read_headers(_headers(host=host, origin=b"http://" + host))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": b"evil.example"},
        {"host": b"localhost.evil.example:8700"},
        {"host": b"10.0.0.1"},
        {"origin": b"https://evil.example"},
        {"origin": b"null"},
        {"origin": b"http://localhost@evil.example"},
        {"origin": b"http://[::1"},
    ],
)
def test_other_hosts_and_sites_are_refused(headers: dict[str, bytes]) -> None:
    """A rebound name in Host or a web page's Origin is refused whatever else the request says."""
    with pytest.raises(ForbiddenError):
        read_headers(_headers(**headers))
