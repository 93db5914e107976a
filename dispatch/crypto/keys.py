"""X25519 keys: made, read, named, and used to seal and open (NaCl box: XSalsa20-Poly1305)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from nacl.exceptions import CryptoError
from nacl.exceptions import TypeError as NaclTypeError
from nacl.exceptions import ValueError as NaclValueError
from nacl.public import Box, PrivateKey, PublicKey

from dispatch.crypto import encoding

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16
"""By how much a ciphertext is longer than what is inside."""
KID_BYTES: Final = 16
_RANDOM_BYTES: Final = 12


def kid_of(public: bytes) -> str:
    """Return the name of a key, which is also its fingerprint: 32 hexadecimal digits made from its bytes."""
    return hashlib.blake2b(public, digest_size=KID_BYTES).hexdigest()


def read_public(text: object) -> bytes:
    """Return a public key from base64. Raises ValueError, with the reason, for what is no usable key."""
    public = encoding.decode(text, KEY_BYTES)
    try:
        Box(PrivateKey.generate(), PublicKey(public))
    except (RuntimeError, CryptoError):
        raise ValueError("is a key that hides nothing (low order)") from None
    return public


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One key pair. The private half never shows itself."""

    public: bytes
    private: bytes = field(repr=False)

    @classmethod
    def make(cls) -> KeyPair:
        """Return a new pair."""
        return cls.of(bytes(PrivateKey.generate()))

    @classmethod
    def of(cls, private: bytes) -> KeyPair:
        """Return the pair of a private key. Raises ValueError when it has not 32 bytes."""
        if len(private) != KEY_BYTES:
            raise ValueError(f"has {len(private)} bytes instead of {KEY_BYTES}")
        return cls(bytes(PrivateKey(private).public_key), private)

    @property
    def kid(self) -> str:
        """The name of the public key."""
        return kid_of(self.public)

    def seal(self, plain: bytes, *, to: bytes, nonce: bytes) -> bytes:
        """Return the ciphertext, without the nonce. A nonce must never be used twice between two keys."""
        return bytes(Box(PrivateKey(self.private), PublicKey(to)).encrypt(plain, nonce).ciphertext)

    def open(self, ciphertext: bytes, *, by: bytes, nonce: bytes) -> bytes | None:
        """Return what is inside, None when it does not open."""
        try:
            return bytes(Box(PrivateKey(self.private), PublicKey(by)).decrypt(ciphertext, nonce))
        except (CryptoError, NaclTypeError, NaclValueError, RuntimeError):
            return None

    def marked_nonce(self, random: bytes) -> bytes:
        """Return a nonce for an answer, from 12 random bytes; its other half proves that it is ours.

        Both directions of a box share one key, so an answer of ours, handed in as a
        task, would open. The mark tells it apart without a register of all answers.
        """
        if len(random) != _RANDOM_BYTES:
            raise ValueError(f"{_RANDOM_BYTES} random bytes are needed")
        return random + self._mark(random)

    def has_marked(self, nonce: bytes) -> bool:
        """Say whether ``marked_nonce`` of this pair made a nonce."""
        return hmac.compare_digest(nonce[_RANDOM_BYTES:], self._mark(nonce[:_RANDOM_BYTES]))

    def _mark(self, random: bytes) -> bytes:
        key = hashlib.blake2b(self.private, digest_size=32, person=b"dispatch-answer").digest()
        return hashlib.blake2b(random, digest_size=NONCE_BYTES - _RANDOM_BYTES, key=key).digest()


def digest_of(sender: bytes, nonce: bytes) -> str:
    """Return what names a sealed message for good: made from its sender's key and its nonce, tells neither."""
    return hashlib.blake2b(sender + nonce, digest_size=32, person=b"dispatch-seen").hexdigest()
