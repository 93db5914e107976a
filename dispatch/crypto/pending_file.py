"""Registrations as they stand in two files: keys that wait, and keys that were rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.crypto import encoding, keys
from dispatch.crypto.registration import Registrations, Rejected, Waiting
from dispatch.crypto.ring_file import iso, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

PENDING_NAME: Final = "pending.json"
REJECTED_NAME: Final = "rejected.json"
_PENDING_FIELDS: Final = frozenset({"public_key", "fingerprint", "task_id", "asked_at"})
_REJECTED_FIELDS: Final = frozenset({"public_key", "fingerprint", "reason", "rejected_at"})


def _items(value: Any, name: str, fields: frozenset[str]) -> list[Mapping[str, Any]]:
    items = value[name]
    if not isinstance(items, list) or not all(isinstance(item, dict) and item.keys() == fields for item in items):
        raise ValueError(f"it must have a list {name!r} of objects with " + ", ".join(sorted(fields)))
    return items


def _public(item: Mapping[str, Any]) -> bytes:
    public = encoding.decode(item["public_key"], keys.KEY_BYTES)
    if item["fingerprint"] != keys.kid_of(public):
        raise ValueError(f"{item['fingerprint']} is not the fingerprint of the key beside it")
    return public


def read_registrations(pending: Any, rejected: Any) -> Registrations:
    """Read pending.json and rejected.json, None for what is not there. Raises ValueError."""
    pending = {"pending": [], "new_at": []} if pending is None else pending
    rejected = {"rejected": []} if rejected is None else rejected
    if pending.keys() != {"pending", "new_at"} or not isinstance(pending["new_at"], list):
        raise ValueError("pending.json must be an object with two lists, pending and new_at")
    if rejected.keys() != {"rejected"}:
        raise ValueError("rejected.json must be an object with one list, rejected")
    return Registrations(
        waiting=tuple(
            Waiting(_public(item), str(item["task_id"]), seconds(item["asked_at"]))
            for item in _items(pending, "pending", _PENDING_FIELDS)
        ),
        rejected=tuple(
            Rejected(_public(item), str(item["reason"]), seconds(item["rejected_at"]))
            for item in _items(rejected, "rejected", _REJECTED_FIELDS)
        ),
        new_at_s=tuple(seconds(text) for text in pending["new_at"]),
    )


def write_pending(registrations: Registrations) -> Any:
    """Write pending.json."""
    return {
        "pending": [
            {
                "public_key": encoding.encode(one.public),
                "fingerprint": one.fingerprint,
                "task_id": one.task_id,
                "asked_at": iso(one.asked_at_s),
            }
            for one in registrations.waiting
        ],
        "new_at": [iso(at_s) for at_s in registrations.new_at_s],
    }


def write_rejected(registrations: Registrations) -> Any:
    """Write rejected.json."""
    return {
        "rejected": [
            {
                "public_key": encoding.encode(one.public),
                "fingerprint": keys.kid_of(one.public),
                "reason": one.reason,
                "rejected_at": iso(one.rejected_at_s),
            }
            for one in registrations.rejected
        ]
    }
