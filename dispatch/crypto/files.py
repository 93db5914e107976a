"""What this host trusts, on disk: the dispatcher's keys, its senders, who asked to be one, and the policy.

Five files of ours; beside them the files of the Node executor are read, as long
as ours say nothing else. A missing directory or file means: nothing is trusted.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dispatch.crypto import encoding, pending_file, ring_file, senders_file
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.registration import Decision, Registrations, Rejected, Waiting, decide
from dispatch.crypto.ring_file import iso
from dispatch.crypto.safe_files import SafeDirectory
from dispatch.crypto.trust import VERSIONS, OwnKey, Ring, Sender, Trust
from dispatch.errors import ConfigurationError, ConflictError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dispatch.settings import Settings

T = TypeVar("T")

POLICY_NAME: Final = "policy.json"
NODE_POLICY_NAME: Final = "config.json"
"""Of the Node executor."""
_TRUST_NAMES: Final = (
    ring_file.RING_NAME,
    ring_file.NODE_RING_NAME,
    senders_file.SENDERS_NAME,
    senders_file.NODE_SENDERS_NAME,
    POLICY_NAME,
    NODE_POLICY_NAME,
)


def key_files(settings: Settings) -> KeyFiles:
    """Return the key files that the settings name."""
    return KeyFiles(
        settings.keys_dir,
        versions=settings.trust.seal_versions,
        require_encryption=settings.trust.require_encryption,
    )


class KeyFiles:
    """The directory of keys, for any number of threads and processes.

    Every method raises ConfigurationError when a file is open to others, a symbolic link, somebody else's, cut off or
    not of the right form: the sentence names the file and what to do. Writers wait for each other and make the
    directory; they touch the disk, so an event loop calls them in a thread. Times are seconds since 1970.
    """

    def __init__(
        self, directory: Path, *, versions: frozenset[int] = VERSIONS, require_encryption: bool = False
    ) -> None:
        """``versions`` and ``require_encryption`` are what the settings say."""
        self.directory = directory
        self._versions = versions
        self._require_encryption = require_encryption
        self._files = SafeDirectory(directory)
        self._guard = threading.Lock()
        self._known: tuple[tuple[Any, ...], Trust] | None = None

    def trust(self) -> Trust:
        """Return what the files say now. Cheap: a file is read again only when it was changed."""
        with self._guard:
            if not self._files.check():
                return Trust(versions=self._versions, require_encryption=self._require_encryption)
            found = {name: self._files.read(name) for name in _TRUST_NAMES}
            signatures = tuple(signature for signature, _ in found.values())
            if self._known is None or self._known[0] != signatures:
                self._known = signatures, self._parsed({name: value for name, (_, value) in found.items()})
            return self._known[1]

    def _parsed(self, values: dict[str, Any]) -> Trust:
        own = self._read(senders_file.SENDERS_NAME, senders_file.read_senders, values) or ()
        node = self._read(senders_file.NODE_SENDERS_NAME, senders_file.read_node_senders, values) or ()
        ring = self._read(ring_file.RING_NAME, ring_file.read_ring, values)
        node_ring = self._read(ring_file.NODE_RING_NAME, ring_file.read_node_ring, values)
        policy = self._read(POLICY_NAME, _read_policy, values)
        node_policy = self._read(NODE_POLICY_NAME, _read_node_policy, values)
        return Trust(
            ring=ring or node_ring or Ring(),
            senders=senders_file.by_name(own, node),
            versions=self._versions,
            require_encryption=self._require_encryption or bool(node_policy if policy is None else policy),
        )

    def _read(self, name: str, parse: Callable[[Any], T], values: dict[str, Any] | None = None) -> T | None:
        value = self._files.read(name)[1] if values is None else values[name]
        if value is None:
            return None
        try:
            return parse(value)
        except (ValueError, TypeError, KeyError) as exc:
            raise ConfigurationError(f"{self.directory / name} is not of the right form: {exc}.") from exc

    def make_key(self, *, now_s: float) -> KeyPair:
        """Make the first key pair. Raises ConflictError when there is one already."""
        with self._files.locked():
            current = self.trust().ring.current()
            if current is not None:
                raise ConflictError(
                    f"There is a key pair already in {self.directory}: {encoding.encode(current.public)} (fingerprint"
                    f" {current.kid}). Nothing was changed; 'dispatch keygen --rotate --overlap 30d' makes a new one"
                    " and lets the old one open tasks for another 30 days."
                )
            return self._write_ring(Ring(), 0, now_s)

    def rotate_key(self, *, overlap_s: float, now_s: float) -> KeyPair:
        """Make a new current pair; the present one opens messages for ``overlap_s`` more, older ones no longer."""
        with self._files.locked():
            return self._write_ring(self.trust().ring, overlap_s, now_s)

    def _write_ring(self, ring: Ring, overlap_s: float, now_s: float) -> KeyPair:
        pair = KeyPair.make()
        changed = ring_file.rotated(ring, pair, overlap_s=overlap_s, now_s=now_s)
        self._files.write(ring_file.RING_NAME, ring_file.write_ring(changed))
        return pair

    def own_keys(self) -> tuple[OwnKey, ...]:
        """Return the dispatcher's key pairs, the current one first."""
        return self.trust().ring.keys

    def add_sender(self, sender: Sender) -> None:
        """Trust a sender.

        Raises ConflictError for a name or key that is there already, one that was removed included, and UsageError for
        a name that cannot be one.
        """
        with self._files.locked():
            self._add(sender)

    def _add(self, sender: Sender) -> None:
        if not senders_file.NAME.fullmatch(sender.name):
            raise UsageError(
                f"{sender.name[:80]!r} is no name for a sender: 1 to 64 letters, digits and . _ @ -, the first a letter"
                " or digit."
            )
        trust = self.trust()
        if any(key.pair.public == sender.public for key in trust.ring.keys):
            raise ConflictError(
                "This is the dispatcher's own key, which no sender has. Nothing was changed; ask the sender for the"
                " public key that 'dispatch sender keygen' printed."
            )
        known = trust.senders
        same_key = next((one for one in known.values() if one.public == sender.public), None)
        if same_key is not None and same_key.revoked_at is not None:
            raise ConflictError(
                f"This key was removed on {same_key.revoked_at} (it was {same_key.name}'s) and stays so. Ask the sender"
                " for a new key pair."
            )
        if same_key is not None:
            raise ConflictError(f"This key is {same_key.name}'s already. Nothing was changed.")
        same_name = known.get(sender.name)
        if same_name is not None and same_name.revoked_at is None:
            raise ConflictError(
                f"There is a sender {sender.name} already, with another key. Nothing was changed; 'dispatch remove-key"
                f" {sender.name}' revokes that key, then the name is free."
            )
        self._write_senders((*self._own_senders(), sender))

    def _own_senders(self) -> tuple[Sender, ...]:
        return self._read(senders_file.SENDERS_NAME, senders_file.read_senders) or ()

    def _write_senders(self, senders: tuple[Sender, ...]) -> None:
        self._files.write(senders_file.SENDERS_NAME, senders_file.write_senders(senders))

    def revoke_sender(self, name: str, *, now_s: float) -> tuple[Sender, bool]:
        """Revoke a sender's key. Returns the sender, and whether it was good until now. Raises NotFoundError."""
        with self._files.locked():
            found = self.trust().senders.get(name)
            if found is None:
                raise NotFoundError(f"There is no sender {name[:80]!r}; 'dispatch list-keys' lists them.")
            if found.revoked_at is not None:
                return found, False
            gone = replace(found, revoked_at=iso(now_s))
            others = tuple(one for one in self._own_senders() if one.public != found.public)
            self._write_senders((*others, gone))
            return gone, True

    def registrations(self, *, now_s: float) -> Registrations:
        """Return who waits for approval, and who was rejected."""
        return self._registrations().at(now_s, self.trust().senders.values())

    def _registrations(self) -> Registrations:
        self._files.check()
        values = {name: self._files.read(name)[1] for name in (pending_file.PENDING_NAME, pending_file.REJECTED_NAME)}
        try:
            return pending_file.read_registrations(*values.values())
        except (ValueError, TypeError, KeyError) as exc:
            raise ConfigurationError(
                f"{pending_file.PENDING_NAME} or {pending_file.REJECTED_NAME} in {self.directory} is not of the right"
                f" form: {exc}."
            ) from exc

    def ask(self, public: bytes, *, task_id: str, now_s: float) -> Decision:
        """Let a key ask to be trusted, with a task, and return what it is told."""
        with self._files.locked():
            before = self._registrations()
            decision = decide(self.trust().senders.values(), before, public, task_id=task_id, now_s=now_s)
            if decision.kept != before:
                self._files.write(pending_file.PENDING_NAME, pending_file.write_pending(decision.kept))
            return decision

    def approve(self, fingerprint: str, sender: Callable[[bytes], Sender], *, now_s: float) -> tuple[Sender, Waiting]:
        """Trust a key that waits, as the sender that ``sender`` makes of it.

        ``fingerprint`` is the whole one. Raises NotFoundError, and what ``add_sender`` raises.
        """
        with self._files.locked():
            found = self._waiting(fingerprint, now_s)
            new = sender(found.public)
            self._add(new)
            self._files.write(pending_file.PENDING_NAME, pending_file.write_pending(self.registrations(now_s=now_s)))
            return new, found

    def reject(self, fingerprint: str, reason: str, *, now_s: float) -> Waiting:
        """Reject a key that waits; it is told the reason whenever it asks again. Raises NotFoundError."""
        with self._files.locked():
            found = self._waiting(fingerprint, now_s)
            before = self._registrations()
            kept = replace(before, rejected=(*before.rejected, Rejected(found.public, reason, now_s)))
            self._files.write(pending_file.REJECTED_NAME, pending_file.write_rejected(kept))
            self._files.write(pending_file.PENDING_NAME, pending_file.write_pending(self.registrations(now_s=now_s)))
            return found

    def _waiting(self, fingerprint: str, now_s: float) -> Waiting:
        found = next((one for one in self.registrations(now_s=now_s).waiting if one.fingerprint == fingerprint), None)
        if found is None:
            raise NotFoundError(
                f"No key with the fingerprint {fingerprint[:80]!r} waits; 'dispatch pending' lists them."
            )
        return found

    def set_require_encryption(self, *, required: bool) -> None:
        """Write the policy file; the setting require_encryption, where true, still means true."""
        with self._files.locked():
            self._files.write(POLICY_NAME, {"require_encryption": required})


def _read_policy(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"require_encryption"}:
        raise ValueError("it must be an object with require_encryption")
    if not isinstance(value["require_encryption"], bool):
        raise ValueError("require_encryption must be true or false")
    return value["require_encryption"]


def _read_node_policy(value: Any) -> bool:
    if not isinstance(value, dict):
        raise ValueError("it must be an object")
    required = value.get("require_encryption", False)
    if required not in (True, False, "true", "false"):
        raise ValueError("require_encryption must be true or false")
    return required in (True, "true")
