"""Whom a host trusts, and with which keys: values only; ``dispatch.crypto.files`` reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dispatch.crypto.refusal import Refusal, SealError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.crypto.keys import KeyPair

VERSIONS: Final = frozenset({1, 2})


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key pair of the dispatcher. ``opens_until_s``: since 1970; None is the one that answers are sealed with."""

    pair: KeyPair
    created_at: str = ""
    opens_until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ring:
    """The dispatcher's key pairs: the current one first, then those that only open, for a while."""

    keys: tuple[OwnKey, ...] = ()

    def current(self) -> KeyPair | None:
        """Return the pair that new messages are sealed for."""
        return next((key.pair for key in self.keys if key.opens_until_s is None), None)

    def usable(self, now_s: float) -> tuple[KeyPair, ...]:
        """Return the pairs that may open a message now."""
        return tuple(key.pair for key in self.keys if key.opens_until_s is None or now_s < key.opens_until_s)


@dataclass(frozen=True, slots=True)
class Sender:
    """A trusted sender. Empty ``channels`` or ``executors`` mean: all."""

    name: str
    public: bytes
    added_at: str = ""
    channels: frozenset[str] = frozenset()
    executors: frozenset[str] = frozenset()
    versions: frozenset[int] = VERSIONS
    encrypted_only: bool = False
    revoked_at: str | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """All that decides about a sealed task, as the files of this host say."""

    ring: Ring = field(default_factory=Ring)
    senders: Mapping[str, Sender] = field(default_factory=dict)
    versions: frozenset[int] = VERSIONS
    """Versions of the envelope that are accepted from anybody."""
    require_encryption: bool = False

    def sender_of(self, name: str | None, public: bytes | None) -> Sender:
        """Return the one sender that name and key both mean; one of them may be None. Raises SealError."""
        by_name = self.senders.get(name) if name is not None else None
        by_key = next((one for one in self.senders.values() if one.public == public), None)
        if (name is not None and by_name is None) or (public is not None and by_key is None):
            raise SealError(Refusal.UNKNOWN_SENDER, "no trusted sender has this name or key")
        found = by_key or by_name
        if found is None:
            raise SealError(Refusal.MALFORMED, "neither sender nor from")
        if by_name is not None and by_key is not None and by_name.public != by_key.public:
            raise SealError(Refusal.SENDER_MISMATCH, "sender and from name different senders")
        if found.revoked_at is not None:
            raise SealError(Refusal.REVOKED_SENDER, f"the key of {found.name} was removed on {found.revoked_at}")
        return found
