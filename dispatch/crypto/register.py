"""The answer to a task titled "register", whose payload holds a key that asks to be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.crypto import encoding, keys
from dispatch.crypto.registration import Verdict

if TYPE_CHECKING:
    from dispatch.crypto.files import KeyFiles

_REFUSED: Final = {
    Verdict.REVOKED: "This key was removed by the operator. Make a new key pair and register that.",
    Verdict.TOO_MANY: "Too many keys wait for approval. Ask the operator to look at them, then register again.",
    Verdict.TOO_FAST: "Too many new keys were registered within the last hour. Register again in an hour.",
}
_NO_KEY: Final = "The dispatcher has no key pair yet. Its operator makes one with 'dispatch keygen'."


def register(key_files: KeyFiles, pubkey_text: object, task_id: str, now_s: float) -> dict[str, Any] | str:
    """Return the outputs that complete a registration task, or, as text, the reason that fails it.

    ``pubkey_text`` is ``payload.pubkey`` as it came, whatever it is. Raises ConfigurationError as KeyFiles does. It
    touches the disk and may wait for another writer: an event loop calls it in a thread.
    """
    try:
        public = keys.read_public(pubkey_text)
    except ValueError as exc:
        return f"payload.pubkey {exc}. It must be an X25519 public key in base64."
    decision = key_files.ask(public, task_id=task_id, now_s=now_s)
    fingerprint = keys.kid_of(public)
    if decision.verdict is Verdict.PENDING:
        return {
            "status": decision.verdict.value,
            "fingerprint": fingerprint,
            "message": "The key waits for the operator's approval. Give the operator the fingerprint by another way;"
            " the answer comes as a message on this task.",
        }
    if decision.verdict is Verdict.REJECTED:
        return f"The operator rejected this key{': ' + decision.reason if decision.reason else '.'}"
    if decision.verdict is not Verdict.KNOWN:
        return _REFUSED[decision.verdict]
    own = key_files.trust().ring.current()
    if own is None:
        return _NO_KEY
    text = encoding.encode(own.public)
    return {
        "status": decision.verdict.value,
        "name": decision.name,
        "ada_public_key": text,  # what senders of the Node executor read
        "dispatcher_public_key": text,
        "fingerprint": fingerprint,
        "message": f"The key is trusted as {decision.name}. Seal tasks for the dispatcher's public key.",
    }
