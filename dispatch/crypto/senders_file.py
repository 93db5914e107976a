"""Trusted senders as they stand in a file; those removed stay in it, so that their keys are known as removed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from dispatch.crypto import encoding, keys
from dispatch.crypto.ring_file import seconds
from dispatch.crypto.trust import VERSIONS, Sender

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SENDERS_NAME: Final = "senders.json"
NODE_SENDERS_NAME: Final = "trusted-keys.json"
"""Of the Node executor: ``{name: {"publicKey", "fingerprint", "addedAt"}}``."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_FIELDS: Final = frozenset(
    {"name", "public_key", "added_at", "channels", "executors", "versions", "encrypted_only", "revoked_at"}
)


def read_senders(value: Any) -> tuple[Sender, ...]:
    """Read senders.json. Raises ValueError: an unknown field might be a permission with a slip of the pen in it."""
    items = value.get("senders") if isinstance(value, dict) and value.keys() == {"senders"} else None
    if not isinstance(items, list) or not all(isinstance(item, dict) and item.keys() == _FIELDS for item in items):
        raise ValueError("it must be a list 'senders' of objects with " + ", ".join(sorted(_FIELDS)))
    found = tuple(_sender(item) for item in items)
    if len({one.public for one in found}) != len(found):
        raise ValueError("a key stands there twice")
    live = [one.name for one in found if one.revoked_at is None]
    if len(set(live)) != len(live):
        raise ValueError("a name stands there twice")
    return found


def _sender(item: Mapping[str, Any]) -> Sender:
    name, revoked_at, versions = item["name"], item["revoked_at"], item["versions"]
    if not _is_name(name):
        raise ValueError("a sender has no usable name")
    if not isinstance(item["encrypted_only"], bool):
        raise ValueError(f"encrypted_only of {name} must be true or false")
    if revoked_at is not None:
        seconds(revoked_at)
    if not isinstance(versions, list) or not versions or not all(type(v) is int and v in VERSIONS for v in versions):
        raise ValueError(f"versions of {name} must be a list of 1, 2 or both")
    return Sender(
        name=name,
        public=_public(name, item["public_key"]),
        added_at=str(item["added_at"]),
        channels=_texts(name, "channels", item["channels"]),
        executors=_texts(name, "executors", item["executors"]),
        versions=frozenset(versions),
        encrypted_only=item["encrypted_only"],
        revoked_at=revoked_at,
    )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable() and not name.startswith("#")


def _public(name: str, text: object) -> bytes:
    try:
        return keys.read_public(text)
    except ValueError as exc:
        raise ValueError(f"the key of {name} {exc}") from None


def _texts(name: str, what: str, value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise ValueError(f"{what} of {name} must be a list of texts")
    return frozenset(value)


def write_senders(senders: Iterable[Sender]) -> Any:
    """Write what ``read_senders`` reads."""
    return {
        "senders": [
            {
                "name": one.name,
                "public_key": encoding.encode(one.public),
                "added_at": one.added_at,
                "channels": sorted(one.channels),
                "executors": sorted(one.executors),
                "versions": sorted(one.versions),
                "encrypted_only": one.encrypted_only,
                "revoked_at": one.revoked_at,
            }
            for one in senders
        ]
    }


def read_node_senders(value: Any) -> tuple[Sender, ...]:
    """Read the Node executor's senders; its fingerprints are of texts and are not used. Raises ValueError."""
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise ValueError("it must be an object of names with their publicKey")
    if not all(_is_name(name) for name in value):
        raise ValueError("a sender has no usable name")
    return tuple(
        Sender(name=name, public=_public(name, item.get("publicKey")), added_at=str(item.get("addedAt") or ""))
        for name, item in value.items()
    )


def by_name(own: Iterable[Sender], node: Iterable[Sender] = ()) -> dict[str, Sender]:
    """Return the senders as ``Trust`` wants them. Ours win over the Node executor's, by name and by key.

    A removed one gives its name up to a new key; it is kept under ``#`` and its fingerprint.
    """
    own = tuple(own)
    found = {one.name: one for one in own if one.revoked_at is None}
    for one in own:
        if one.revoked_at is not None:
            found[one.name if one.name not in found else f"#{keys.kid_of(one.public)}"] = one
    known = {one.public for one in own}
    return {one.name: one for one in node if one.name not in found and one.public not in known} | found
