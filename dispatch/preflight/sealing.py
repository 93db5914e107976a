"""Can the key files of this host be used, and does what is demanded of senders fit them?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from dispatch.crypto.files import key_files
from dispatch.errors import ConfigurationError
from dispatch.preflight.check import Check

if TYPE_CHECKING:
    from dispatch.settings import Settings

NAME: Final = "sealing"


def check_sealing(settings: Settings) -> list[Check]:
    """Can they be read, and by nobody else? While they cannot, no task runs here."""
    files = key_files(settings)
    try:
        trust = files.trust()
        files.registrations(now_s=time.time())
    except (ConfigurationError, OSError) as exc:
        return [Check(NAME, "error", f"While this is so, no task runs here: {exc}")]
    senders = sum(sender.revoked_at is None for sender in trust.senders.values())
    if trust.require_encryption and (trust.ring.current() is None or not senders):
        lacks = "no key pair here" if trust.ring.current() is None else "no trusted sender"
        advice = "Make a pair with 'dispatch keygen', trust senders with 'dispatch approve' or 'dispatch add-key'."
        return [Check(NAME, "warning", f"Only sealed tasks are accepted, but there is {lacks}.", advice)]
    if trust.ring.current() is None:
        return [Check(NAME, "ok", f"There is no key pair in {files.directory}: sealed tasks are refused.")]
    only = ", and nothing else is accepted" if trust.require_encryption else ""
    return [Check(NAME, "ok", f"Sealed tasks of {senders} {'sender' if senders == 1 else 'senders'} are opened{only}.")]
