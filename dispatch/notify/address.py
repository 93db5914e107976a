"""Which addresses a callback may be sent to.

The URL comes from whoever wrote the task, so it is hostile. Judged is the
address that the socket is about to connect to, on every connect: texts can be
written in a hundred ways, and a name can stand for another address a moment
later.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What ``is_global`` of some Python takes for global: it knows neither what is translated to IPv4, nor multicast.
_NEVER_GLOBAL: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "::/96",  # IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",  # Teredo and other special uses
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/9",  # link-local and the site-local of old
        "ff00::/8",
    )
)
_NEVER_BY_NAME: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/128", "fe80::/10", "ff00::/8")
)
"""What an allowed host name may not stand for: an operator who wants it names the address itself."""


class AddressRefusedError(OSError):
    """A callback may not connect there."""


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What the operator allows beyond the public Internet.

    ``networks`` and ``hosts`` (lower case, without a trailing dot) may be private. ``own`` are (address, port)
    of our own service and Redis, which are refused in any case.
    """

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    own: frozenset[tuple[Address, int]] = field(default_factory=frozenset)

    def allows(self, address: Address, port: int, host: str) -> bool:
        """Say whether a callback to ``host`` may connect to this address, to which it was resolved."""
        plain = _unmapped(address)
        if any((one, port) in self.own for one in {address, plain}):
            return False
        if _is_in(address, self.networks) or _is_in(plain, self.networks):
            return True
        if host.lower().rstrip(".") in self.hosts:
            return not _is_in(plain, _NEVER_BY_NAME)
        return is_public(address)


def is_public(address: Address) -> bool:
    """Say whether an address is one of the public Internet, and nothing that leads back inside."""
    return address.is_global and not address.is_multicast and not _is_in(address, _NEVER_GLOBAL)


def parse(text: str) -> Address:
    """Read an address as a socket has it; a zone is dropped. Raises ValueError."""
    return ipaddress.ip_address(text.partition("%")[0])


def parse_allowed(items: Iterable[str]) -> tuple[tuple[Network, ...], frozenset[str]]:
    """Read what an operator allows: networks such as 10.0.0.0/8, addresses, and host names. Raises ValueError."""
    networks: list[Network] = []
    hosts: set[str] = set()
    for item in items:
        try:
            networks.append(ipaddress.ip_network(item.strip("[]"), strict=False))
        except ValueError:
            if "/" in item or ":" in item or not item.isascii():
                raise ValueError(f"{item!r} is neither a network such as 10.0.0.0/8 nor a host name") from None
            hosts.add(item.lower().rstrip("."))
    return tuple(networks), frozenset(hosts)


def _unmapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
