"""Where a callback may go: the table of addresses, what an operator allows, and our own places."""

from __future__ import annotations

import pytest

from dispatch.notify.address import AddressRules, parse, parse_allowed

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "198.17.255.255",
    "223.255.255.255",
    "2606:2800:220:1:248:1893:25c8:1946",
    "2001:4860:4860::8888",
    "2a00:1450:4001:800::200e",
]
INSIDE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456:789a::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_public_internet_is_allowed(address: str) -> None:
    """Addresses that everybody can reach."""
    assert AddressRules().allows(parse(address), 443, "example.com")


@pytest.mark.parametrize("address", INSIDE)
def test_everything_else_is_refused(address: str) -> None:
    """Whatever is private, special, translated or unknown, in either family."""
    assert not AddressRules().allows(parse(address), 443, "example.com")


def rules(*allowed: str, own: tuple[tuple[str, int], ...] = ()) -> AddressRules:
    """Rules with what an operator wrote."""
    networks, hosts = parse_allowed(allowed)
    return AddressRules(networks, hosts, frozenset((parse(address), port) for address, port in own))


@pytest.mark.parametrize(
    ("allowed", "address", "host", "may"),
    [
        ("10.1.0.0/16", "10.1.2.3", "x", True),
        ("10.1.0.0/16", "10.2.2.3", "x", False),
        ("10.1.0.0/16", "::ffff:10.1.2.3", "x", True),
        ("10.1.2.3", "10.1.2.3", "x", True),
        ("127.0.0.1", "127.0.0.2", "x", False),
        ("fd00::/8", "fd00::1", "x", True),
        ("[fd00::1]", "fd00::1", "x", True),
        ("hooks.internal", "10.9.9.9", "hooks.internal", True),
        ("hooks.internal", "10.9.9.9", "HOOKS.internal.", True),
        ("hooks.internal", "10.9.9.9", "other.internal", False),
        ("hooks.internal", "10.9.9.9", "x.hooks.internal", False),
        ("hooks.internal", "169.254.169.254", "hooks.internal", False),
        ("hooks.internal", "0.0.0.0", "hooks.internal", False),
        ("169.254.169.254", "169.254.169.254", "x", True),
    ],
)
def test_what_an_operator_allows(allowed: str, address: str, host: str, may: bool) -> None:
    """Networks by the address, hosts by the name in the URL; a name never opens the link-local door."""
    assert rules(allowed).allows(parse(address), 443, host) is may


def test_our_own_places_are_refused_in_any_case() -> None:
    """The service's and Redis' address and port, also when their network is allowed, also as IPv4-mapped."""
    found = rules("127.0.0.0/8", "::ffff:0:0/96", own=(("127.0.0.1", 8700),))
    assert not found.allows(parse("127.0.0.1"), 8700, "x")
    assert not found.allows(parse("::ffff:127.0.0.1"), 8700, "x")
    assert found.allows(parse("127.0.0.1"), 8701, "x")


@pytest.mark.parametrize("item", ["10.0.0.0/33", "fd00::zz", "a/b", "café.example"])
def test_what_is_neither_network_nor_host_is_refused(item: str) -> None:
    """A slip in the setting is an error, not an open door."""
    with pytest.raises(ValueError, match="neither a network"):
        parse_allowed([item])
