"""The dispatcher's own key pairs as they stand in a file."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from dispatch.crypto import encoding
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.trust import OwnKey, Ring

RING_NAME: Final = "dispatcher.json"
NODE_RING_NAME: Final = "dispatch-keys.json"
"""Of the Node executor: one pair, ``{"publicKey", "secretKey"}``."""
_FIELDS: Final = frozenset({"public_key", "secret_key", "created_at", "opens_until"})


def iso(at_s: float) -> str:
    """Write seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def seconds(text: object) -> float:
    """Read what ``iso`` writes. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError("must be a time such as 2026-11-21T08:00:00Z")
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("must be a time with its zone, such as 2026-11-21T08:00:00Z")
    return found.timestamp()


def read_pair(public: object, secret: object) -> KeyPair:
    """Return a pair from base64. Raises ValueError when the halves do not belong together."""
    pair = KeyPair.of(encoding.decode(secret, 32))
    if encoding.decode(public, 32) != pair.public:
        raise ValueError("the two halves of a key pair do not belong together")
    return pair


def read_ring(value: Any) -> Ring:
    """Read dispatcher.json. Raises ValueError."""
    items = value.get("keys") if isinstance(value, dict) and value.keys() == {"keys"} else None
    if not isinstance(items, list) or not all(isinstance(item, dict) and item.keys() == _FIELDS for item in items):
        raise ValueError("it must be a list 'keys' of objects with " + ", ".join(sorted(_FIELDS)))
    found = []
    for item in items:
        pair = read_pair(item["public_key"], item["secret_key"])
        until = None if item["opens_until"] is None else seconds(item["opens_until"])
        found.append(OwnKey(pair, str(item["created_at"]), until))
    if [key.opens_until_s is None for key in found] != [True] + [False] * (len(found) - 1):
        raise ValueError("the first key, and no other, must be without opens_until")
    return Ring(tuple(found))


def write_ring(ring: Ring) -> Any:
    """Write what ``read_ring`` reads."""
    return {
        "keys": [
            {
                "public_key": encoding.encode(key.pair.public),
                "secret_key": encoding.encode(key.pair.private),
                "created_at": key.created_at,
                "opens_until": None if key.opens_until_s is None else iso(key.opens_until_s),
            }
            for key in ring.keys
        ]
    }


def read_node_ring(value: Any) -> Ring:
    """Read the Node executor's key pair. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("it must be an object with publicKey and secretKey")
    return Ring((OwnKey(read_pair(value.get("publicKey"), value.get("secretKey"))),))


def rotated(ring: Ring, pair: KeyPair, *, overlap_s: float, now_s: float) -> Ring:
    """Return the ring with a new current pair; the present one opens for ``overlap_s`` more, expired ones go.

    No older one opens for longer than that: all lie in one file, so whoever stole one has them all.
    """
    end_s = now_s + overlap_s
    bounded = (replace(key, opens_until_s=min(key.opens_until_s or end_s, end_s)) for key in ring.keys)
    opening = (key for key in bounded if key.opens_until_s is not None and key.opens_until_s > now_s)
    return Ring((OwnKey(pair, iso(now_s)), *opening))
