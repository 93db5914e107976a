"""API keys: their text, their rows, and who a key vouches for.

A key reads ``dsk_<id>_<secret>``. The id is public; of the secret, 256 random
bits, only the SHA-256 is kept: with so much randomness a slow hash would add
nothing. Rows are never deleted, so that a service that has keys never falls
open again. Every function on a ``Tx`` is one transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import bindparam, insert, select, update

from dispatch.ats.model import Actor
from dispatch.errors import ConflictError, InvalidInputError, NotFoundError
from dispatch.service import tenants
from dispatch.service.access import Access, Caller
from dispatch.service.schema import api_keys, organizations, projects

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatch.service.rows import Scope
    from dispatch.service.store import Tx

T = TypeVar("T")

KEY: Final = re.compile(r"dsk_([0-9a-f]{12})_([0-9a-f]{64})", re.ASCII)
NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_NO_KEY_SHA256: Final = "0" * 64
"""Compared with when the id is unknown, so that the work is the same."""

KEPT_S: Final = 1.0
"""How long a key may be believed that a lost notification would have called back."""
_KEPT_MAX: Final = 1_024

COLUMNS: Final = tuple(api_keys.c)
SELECT_KEY: Final = select(*COLUMNS).where(api_keys.c.id == bindparam("p_id"))
SELECT_ANY: Final = select(api_keys.c.id).limit(1)


@dataclass(frozen=True, slots=True)
class Key:
    """One row of ``api_keys``. Times are ms since the epoch."""

    id: str
    name: str
    secret_sha256: str
    access: str
    actor_type: str
    actor_id: str
    projects: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    def is_live(self, now_ms: int) -> bool:
        """Say whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now_ms < self.expires_at)

    def state(self, now_ms: int) -> str:
        """Return ``live``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "live" if self.is_live(now_ms) else "expired"


def split(text: str) -> tuple[str, str] | None:
    """Return (id, secret) of a key's text, or None when it is no key."""
    found = KEY.fullmatch(text)
    return None if found is None else (found[1], found[2])


def vouches(key: Key | None, secret: str, now_ms: int) -> bool:
    """Say whether ``secret`` is this key's and the key is live. Takes as long whether or not there is a key."""
    known = key.secret_sha256 if key is not None else _NO_KEY_SHA256
    is_right = hmac.compare_digest(_sha256(secret), known)
    return is_right and key is not None and key.is_live(now_ms)


def caller_of(key: Key, claimed_id: str, shown_name: str) -> Caller:
    """Return whom a request with this key is made by.

    ``claimed_id`` is taken only where the key's actor is no UUID and it names
    that actor or an instance of it (``<actor id>-...``); ``shown_name`` is for display.
    """
    ident = key.actor_id
    if covers(ident, claimed_id):
        ident = claimed_id
    allowed = None if key.projects is None else frozenset(json.loads(key.projects))
    actor = Actor(key.actor_type, ident, shown_name or ident)
    return Caller(actor, Access[key.access.upper()], allowed, is_keyed=True, key_id=key.id)


def find(tx: Tx, key_id: str) -> Key | None:
    """Return a key by its public id, live or not."""
    row = tx.one(SELECT_KEY, {"p_id": key_id})
    return None if row is None else Key(*row)


def exist(tx: Tx) -> bool:
    """Say whether a key was ever made."""
    return tx.one(SELECT_ANY) is not None


def every(tx: Tx) -> list[Key]:
    """Return all keys, the oldest first."""
    return [Key(*row) for row in tx.all(select(*COLUMNS).order_by(api_keys.c.created_at, api_keys.c.id))]


def create(
    tx: Tx, name: str, *, access: Access, actor: Actor, scopes: Iterable[Scope] = (), expires_at: int | None = None
) -> tuple[Key, str]:
    """Make a key and return it with its text, which is nowhere else. No ``scopes`` means all projects.

    Raises InvalidInputError, ConflictError when a key that is not revoked has
    the name, NotFoundError for an unknown project.
    """
    if not NAME.fullmatch(name):
        raise InvalidInputError(
            f"A key's name is 1 to 64 letters, digits, dots, underscores and dashes; {name[:80]!r} is not."
        )
    taken = select(api_keys.c.id).where(api_keys.c.name == name, api_keys.c.revoked_at.is_(None))
    if (row := tx.one(taken)) is not None:
        raise ConflictError(
            f"There is a key {name} already, with the id {row[0]}.",
            next_step="Choose another name, or revoke that key first.",
        )
    numbers = sorted({tenants.project_id(tx, scope) for scope in scopes})
    secret = secrets.token_hex(32)
    key = Key(
        id=secrets.token_hex(6),
        name=name,
        secret_sha256=_sha256(secret),
        access=access.name.lower(),
        actor_type=actor.type,
        actor_id=actor.id,
        projects=json.dumps(numbers) if numbers else None,
        created_at=tx.now_ms,
        expires_at=expires_at,
        revoked_at=None,
    )
    tx.run(insert(api_keys).values({column.name: getattr(key, column.name) for column in COLUMNS}))
    return key, f"dsk_{key.id}_{secret}"


def revoke(tx: Tx, ident: str) -> tuple[Key, bool]:
    """Revoke a key by its id, or by the name of one that is not revoked. Return it, and whether it was live so far.

    Raises NotFoundError.
    """
    key = find(tx, ident)
    if key is None:
        row = tx.one(select(*COLUMNS).where(api_keys.c.name == ident, api_keys.c.revoked_at.is_(None)))
        if row is None:
            raise NotFoundError(f"There is no key {ident[:80]}; 'dispatch api-key list' shows all.")
        key = Key(*row)
    if key.revoked_at is not None:
        return key, False
    row = tx.one(update(api_keys).where(api_keys.c.id == key.id).values(revoked_at=tx.now_ms).returning(*COLUMNS))
    return Key(*row), True


def overlapping(tx: Tx, key: Key) -> list[Key]:
    """Return the other keys, not revoked, that may act as this one's actor, or as whose actor this one may act."""
    return [
        other
        for other in every(tx)
        if other.id != key.id
        and other.revoked_at is None
        and (covers(other.actor_id, key.actor_id) or covers(key.actor_id, other.actor_id))
    ]


def covers(actor_id: str, instance_id: str) -> bool:
    """Say whether ``instance_id`` is a proper instance of ``actor_id``."""
    return instance_id.startswith(f"{actor_id}-") and not _UUID.fullmatch(actor_id)


def project_names(tx: Tx, numbers: Sequence[int]) -> list[str]:
    """Return the names, ``org/project``, of these projects."""
    named = (
        select(organizations.c.slug, projects.c.slug)
        .join(projects, projects.c.organization_id == organizations.c.id)
        .where(projects.c.id.in_(list(numbers)))
        .order_by(organizations.c.slug, projects.c.slug)
    )
    return [f"{org}/{project}" for org, project in tx.all(named)]


class KeptKeys:
    """``Store.key`` and ``Store.has_keys`` for a store to which every look-up is a journey.

    What was read is kept for KEPT_S at most, and forgotten at once when
    ``forget_keys`` says that a key was made or revoked somewhere.
    """

    read: Any
    """As a store has it."""

    def __init__(self) -> None:
        self._has_keys = (False, 0.0)
        self._kept: dict[str, tuple[Key | None, float]] = {}
        self._changes = 0

    def forget_keys(self) -> None:
        """Look everything up anew. Belongs to the event loop."""
        self._changes += 1
        self._kept.clear()
        self._has_keys = (self._has_keys[0], 0.0)

    async def key(self, key_id: str) -> Key | None:
        """Return a key as it is now. Raises OverloadedError."""
        kept = self._kept.get(key_id)
        if kept is not None and time.monotonic() < kept[1]:
            return kept[0]
        asked, changes = time.monotonic(), self._changes
        found: Key | None = await self.read(lambda tx: find(tx, key_id))
        if changes == self._changes:
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            self._kept[key_id] = (found, asked + KEPT_S)
        return found

    async def has_keys(self) -> bool:
        """Say whether a key was ever made; once that was so it stays so. Raises OverloadedError."""
        known, until = self._has_keys
        if known or time.monotonic() < until:
            return known
        asked, changes = time.monotonic(), self._changes
        known = bool(await self.read(exist))
        if known or changes == self._changes:
            self._has_keys = (known, asked + KEPT_S)
        return known


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
