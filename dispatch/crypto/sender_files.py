"""The sender's own files: its key pair, in the form of the Node executor's ``my-keys.json``, and whom it sealed for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatch.crypto import encoding, keys
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.ring_file import read_pair
from dispatch.crypto.safe_files import SafeDirectory
from dispatch.errors import ConfigurationError, ConflictError

if TYPE_CHECKING:
    from pathlib import Path

KEY_FILE_NAME: Final = "my-keys.json"
KNOWN_NAME: Final = "dispatchers.json"
KNOWN_MAX: Final = 100


class SenderFiles:
    """A sender's key file, and beside it the dispatchers' public keys that it has sealed for.

    Every method raises ConfigurationError when a file cannot be trusted or has not the right form.
    """

    def __init__(self, path: Path) -> None:
        """``path`` is the key file."""
        self.path = path
        self._files = SafeDirectory(path.parent, named_by="--key-file")

    def make(self) -> KeyPair:
        """Make the key pair. Raises ConflictError when there is one."""
        with self._files.locked():
            found = self._read()
            if found is not None:
                raise ConflictError(
                    f"There is a key pair already in {self.path}: {encoding.encode(found.public)} (fingerprint"
                    f" {found.kid}). Nothing was changed; --key-file names another place."
                )
            pair = KeyPair.make()
            value = {"publicKey": encoding.encode(pair.public), "secretKey": encoding.encode(pair.private)}
            self._files.write(self.path.name, value)
            return pair

    def pair(self) -> KeyPair:
        """Return the key pair."""
        found = self._read()
        if found is None:
            raise ConfigurationError(
                f"There is no key pair in {self.path}; 'dispatch sender keygen' makes one, --key-file names another"
                " place."
            )
        return found

    def _read(self) -> KeyPair | None:
        self._files.check()
        _, value = self._files.read(self.path.name)
        if value is None:
            return None
        try:
            return read_pair(value.get("publicKey"), value.get("secretKey"))
        except ValueError as exc:
            raise ConfigurationError(f"{self.path} holds no key pair: {exc}.") from exc

    def known(self) -> list[bytes]:
        """Return the dispatchers' public keys that were sealed for, the newest first."""
        _, value = self._files.read(KNOWN_NAME)
        try:
            return [] if value is None else [keys.read_public(text) for text in value["dispatchers"]]
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigurationError(f"{self.path.parent / KNOWN_NAME} is not of the right form: {exc}.") from exc

    def remember(self, public: bytes) -> None:
        """Keep a dispatcher's public key, so that its answers can be opened."""
        if self.known()[:1] == [public]:
            return
        with self._files.locked():
            kept = [public, *(one for one in self.known() if one != public)][:KNOWN_MAX]
            self._files.write(KNOWN_NAME, {"dispatchers": [encoding.encode(one) for one in kept]})
