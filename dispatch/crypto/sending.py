"""The sender's side: sealing a task, opening its answer. Works against any ATS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dispatch.core.sealed import is_sealed_answer
from dispatch.crypto import content, encoding, keys
from dispatch.crypto.content import Answer, Head
from dispatch.crypto.refusal import Refusal, SealError

if TYPE_CHECKING:
    from dispatch.crypto.content import Content
    from dispatch.crypto.keys import KeyPair


def seal_v1(said: Content, *, pair: KeyPair, to: bytes, sender: str | None, nonce: bytes) -> dict[str, Any]:
    """Return the payload of version 1; without a name the sender's key stands in it. ``nonce``: 24 random bytes."""
    who = {"sender": sender} if sender else {"from": encoding.encode(pair.public)}
    return {"encrypted": True, **who, **_boxed(content.write_v1(said), pair, to, nonce)}


def seal_v2(
    said: Content,
    *,
    pair: KeyPair,
    to: bytes,
    channel: str,
    message_id: str,
    now_s: float,
    nonce: bytes,
    expires_after_s: float | None = None,
) -> dict[str, Any]:
    """Return the payload of version 2, to be created on ``channel`` within five minutes of ``now_s``."""
    head = Head(
        message_id=message_id,
        sender_kid=pair.kid,
        recipient_kid=keys.kid_of(to),
        channel=channel,
        sealed_at_s=int(now_s),
        expires_at_s=None if expires_after_s is None else int(now_s + expires_after_s),
    )
    return {
        "encrypted": True,
        "v": 2,
        "from": encoding.encode(pair.public),
        "to": head.recipient_kid,
        **_boxed(content.write_v2(head, said), pair, to, nonce),
    }


def _boxed(plain: bytes, pair: KeyPair, to: bytes, nonce: bytes) -> dict[str, str]:
    return {"nonce": encoding.encode(nonce), "ciphertext": encoding.encode(pair.seal(plain, to=to, nonce=nonce))}


def sealed_in(outputs: Any) -> dict[str, Any] | None:
    """Return the sealed answer among a task's outputs, which some services wrap in a list."""
    items = outputs if isinstance(outputs, list) else [outputs]
    return next((one for one in items if is_sealed_answer(one)), None)


def open_answer(output: dict[str, Any], *, pair: KeyPair, by: bytes, task_id: str) -> Answer:
    """Return a sealed answer, read with the key of either side; ``by`` is the other side's.

    An answer of version 1 has text only. Raises SealError when it does not open or belongs to another task.
    """
    try:
        nonce = encoding.decode(output["encrypted_response"].get("nonce"), keys.NONCE_BYTES)
        ciphertext = encoding.decode(output["encrypted_response"].get("ciphertext"))
    except (KeyError, AttributeError, ValueError) as exc:
        raise SealError(Refusal.MALFORMED, f"the answer {exc}") from None
    plain = pair.open(ciphertext, by=by, nonce=nonce)
    if plain is None:
        raise SealError(Refusal.FORGED, "the answer does not open with these keys")
    if output.get("v") != 2:
        content.refuse_later_version(plain)
        return Answer("", "", task_id, 0, "", "", 0, "", plain.decode("utf-8", "replace"))
    found = content.read_answer(plain)
    if found.task_id != task_id or {found.sender_kid, found.recipient_kid} != {pair.kid, keys.kid_of(by)}:
        raise SealError(Refusal.CONTEXT, "the answer belongs to another task or another pair of keys")
    return found


def message_id_of(payload: Any, *, pair: KeyPair, by: bytes) -> str | None:
    """Return the id of a message of version 2 that this pair sealed for ``by``, None for anything else.

    The answer to it must name it; whoever keeps the task could have put another message in its place.
    """
    if not isinstance(payload, dict) or payload.get("v") != 2:
        return None
    try:
        nonce = encoding.decode(payload.get("nonce"), keys.NONCE_BYTES)
        plain = pair.open(encoding.decode(payload.get("ciphertext")), by=by, nonce=nonce)
        return None if plain is None else content.read_v2(plain)[0].message_id
    except (ValueError, SealError):
        return None
