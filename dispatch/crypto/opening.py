"""Opening sealed tasks and sealing answers: every check of docs/encryption.md, in one place. Pure but for keys.

Nothing outside the box is believed: what steers dispatch (callback, quiet,
dependencies) counts only inside, and a copy outside that differs refuses the
task. The one thing that is left to the caller is the register of messages seen:
``Opened.digest`` may belong to one task only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.dependencies import named_in
from dispatch.core.sealed import is_sealed
from dispatch.crypto import content, encoding, keys
from dispatch.crypto.content import Answer, Content, Head
from dispatch.crypto.refusal import Refusal, SealError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.crypto.keys import KeyPair
    from dispatch.crypto.trust import Sender, Trust

__all__ = [
    "TITLE",
    "Opened",
    "Outside",
    "answer",
    "check_open",
    "check_permitted",
    "is_sealed",
    "open_task",
]

TITLE: Final = "Encrypted task"
"""The title outside a sealed task of version 2."""
_FIELDS: Final = frozenset({"encrypted", "v", "sender", "from", "to", "nonce", "ciphertext"})
_STEERING: Final = frozenset({"callback_url", "depends_on", "quiet"})


@dataclass(frozen=True, slots=True)
class Outside:
    """What everybody sees of a task. ``created_at_s`` is since 1970, None where the service does not say."""

    task_id: str
    title: str
    channel: str
    payload: Any
    created_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A sealed task, opened: whose it is and what it says."""

    sender: Sender
    pair: KeyPair
    """Ours; the answer is sealed with it."""
    version: int
    content: Content = field(repr=False)
    digest: str
    """Names the message; see ``keys.digest_of``."""
    message_id: str = ""
    """Of version 2."""


def open_task(outside: Outside, trust: Trust, *, now_s: float) -> Opened:
    """Return what a sealed task says, after every check but the register of messages seen. Raises SealError."""
    payload = outside.payload
    if not isinstance(payload, dict) or payload.get("encrypted") is not True:
        raise SealError(Refusal.MALFORMED, "encrypted must be true")
    unknown = payload.keys() - _FIELDS - _STEERING
    if unknown:
        raise SealError(Refusal.MALFORMED, f"{len(unknown)} unknown fields beside the seal")
    version = payload.get("v", 1)
    if type(version) is not int or version not in trust.versions:
        raise SealError(Refusal.VERSION, "this version is not accepted here")
    sender = _sender_of(payload, trust)
    if version not in sender.versions:
        raise SealError(Refusal.VERSION, f"{sender.name} may not use version {version}")
    nonce, ciphertext = _bytes(payload, "nonce", keys.NONCE_BYTES), _bytes(payload, "ciphertext", None)
    if any(own.pair.has_marked(nonce) for own in trust.ring.keys):
        raise SealError(Refusal.REFLECTION, "an answer of ours came back as a task")
    pair, plain = _unboxed(payload, trust, sender, nonce, ciphertext, now_s)
    message_id = ""
    if version == 2:
        head, said = content.read_v2(plain)
        _check_head(head, outside, sender, pair)
        if head.expires_at_s is not None and now_s > head.expires_at_s:
            raise SealError(Refusal.STALE, "its sender wanted it run earlier or not at all")
        message_id = head.message_id
    else:
        said = content.read_v1(plain)
    _check_outside(outside, said, version)
    if sender.channels and outside.channel not in sender.channels:
        raise SealError(Refusal.NOT_PERMITTED, f"{sender.name} may not use this channel")
    return Opened(sender, pair, version, said, keys.digest_of(sender.public, nonce), message_id)


def _sender_of(payload: Mapping[str, Any], trust: Trust) -> Sender:
    name, public = payload.get("sender"), None
    if name is not None and not isinstance(name, str):
        raise SealError(Refusal.MALFORMED, "sender must be text")
    if payload.get("from") is not None:
        try:
            public = keys.read_public(payload["from"])
        except ValueError as exc:
            raise SealError(Refusal.MALFORMED, f"from {exc}") from None
    return trust.sender_of(name, public)


def _bytes(payload: Mapping[str, Any], name: str, size: int | None) -> bytes:
    try:
        return encoding.decode(payload.get(name), size)
    except ValueError as exc:
        raise SealError(Refusal.MALFORMED, f"{name} {exc}") from None


def _unboxed(
    payload: Mapping[str, Any], trust: Trust, sender: Sender, nonce: bytes, ciphertext: bytes, now_s: float
) -> tuple[KeyPair, bytes]:
    usable = tuple(pair for pair in trust.ring.usable(now_s) if payload.get("to", pair.kid) == pair.kid)
    if not usable:
        raise SealError(Refusal.UNKNOWN_RECIPIENT, "sealed for a key that this host does not have, or not any more")
    for pair in usable:
        plain = pair.open(ciphertext, by=sender.public, nonce=nonce)
        if plain is not None:
            return pair, plain
    raise SealError(Refusal.FORGED, f"does not open with the key of {sender.name}")


def _check_head(head: Head, outside: Outside, sender: Sender, pair: KeyPair) -> None:
    if head.sender_kid != keys.kid_of(sender.public) or head.recipient_kid != pair.kid:
        raise SealError(Refusal.SENDER_MISMATCH, "sealed as somebody else, or for somebody else")
    if head.channel != outside.channel:
        raise SealError(Refusal.CONTEXT, "sealed for another channel")
    created_at_s = outside.created_at_s
    if created_at_s is not None and abs(created_at_s - head.sealed_at_s) > content.FRESH_S:
        raise SealError(Refusal.STALE, f"sealed {created_at_s - head.sealed_at_s:.0f} s before the task was created")


def _check_outside(outside: Outside, said: Content, version: int) -> None:
    """Refuse what somebody changed outside the box."""
    payload = outside.payload
    named = tuple(str(name) for name in named_in(payload) or ())
    differs = (
        ("callback_url" in payload and payload["callback_url"] != said.callback_url)
        or ("quiet" in payload and payload["quiet"] is not said.quiet)
        or ("depends_on" in payload and set(named) != set(said.depends_on))
        or outside.title not in ({TITLE} if version == 2 else {TITLE, said.title})
    )
    if differs:
        raise SealError(Refusal.CONTEXT, "title, callback_url, quiet or depends_on outside differ from what is inside")


def check_permitted(sender: Sender, executor: str) -> None:
    """Raise SealError when a sender may not use an executor."""
    if sender.executors and executor not in sender.executors:
        raise SealError(Refusal.NOT_PERMITTED, f"{sender.name} may not use the executor {executor}")


def check_open(outside: Outside, trust: Trust) -> None:
    """Raise SealError when a task in the open is not accepted: by policy, or because of whose it says it is."""
    if trust.require_encryption:
        raise SealError(Refusal.ENCRYPTION_REQUIRED, "require_encryption is set")
    payload = outside.payload if isinstance(outside.payload, dict) else {}
    said = {name for name in (payload.get("sender"), payload.get("from")) if isinstance(name, str)}
    for one in trust.senders.values():
        if one.encrypted_only and said & {one.name, encoding.encode(one.public)}:
            raise SealError(Refusal.ENCRYPTION_REQUIRED, f"{one.name} sends sealed tasks only")


def answer(opened: Opened, text: str, *, task_id: str, attempt: int, status: str, now_s: float, random: bytes) -> Any:
    """Return the output that only the sender can read; ``random`` are 28 bytes nobody else knows.

    ``{"encrypted_response": {"nonce", "ciphertext"}, "response_encrypted": true}``, with ``"v": 2`` for version 2.
    """
    nonce = opened.pair.marked_nonce(random[:12])
    plain = text.encode("utf-8", "replace")
    if opened.version == 2:
        plain = content.write_answer(
            Answer(
                message_id=random[12:28].hex(),
                re=opened.message_id,
                task_id=task_id,
                attempt=attempt,
                sender_kid=opened.pair.kid,
                recipient_kid=keys.kid_of(opened.sender.public),
                sealed_at_s=int(now_s),
                status=status,
                text=text.encode("utf-8", "replace").decode("utf-8"),
            )
        )
    ciphertext = opened.pair.seal(plain, to=opened.sender.public, nonce=nonce)
    sealed = {"nonce": encoding.encode(nonce), "ciphertext": encoding.encode(ciphertext)}
    return {"encrypted_response": sealed, "response_encrypted": True, **({"v": 2} if opened.version == 2 else {})}
