"""Keys that ask to be trusted: pending, approve, reject-key."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats import protocol
from dispatch.cli.keys import may, permission_options, sender_of, shown_sender
from dispatch.cli.options import State, json_option, service_options
from dispatch.cli.output import ago
from dispatch.errors import ConflictError, GatewayError, UsageError

if TYPE_CHECKING:
    from dispatch.crypto.registration import Waiting

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


@click.command()
@json_option
@click.pass_obj
def pending(state: State) -> None:
    """List the keys that ask to be trusted.

    Compare a fingerprint with what its owner tells you by another way, then approve it.

    \b
    Examples:
      dispatch pending
      dispatch pending --json | jq -r '.[].fingerprint'
    """  # noqa: D301 - click's mark
    from datetime import UTC, datetime

    from dispatch.crypto.encoding import encode
    from dispatch.crypto.files import key_files
    from dispatch.crypto.registration import EXPIRES_S
    from dispatch.crypto.ring_file import iso

    found = key_files(state.settings).registrations(now_s=time.time()).waiting
    if state.output.is_json:
        state.output.json(
            [
                {
                    "fingerprint": one.fingerprint,
                    "public_key": encode(one.public),
                    "task_id": one.task_id,
                    "asked_at": iso(one.asked_at_s),
                    "expires_at": iso(one.asked_at_s + EXPIRES_S),
                }
                for one in found
            ]
        )
        return

    def when(at_s: float) -> str:
        return ago(datetime.fromtimestamp(at_s, UTC)) if state.output.is_terminal else iso(at_s)

    if found or not state.output.is_terminal:
        state.output.table(
            ("FINGERPRINT", "TASK", "ASKED", "EXPIRES", "PUBLIC KEY"),
            [
                (
                    one.fingerprint,
                    one.task_id,
                    when(one.asked_at_s),
                    when(one.asked_at_s + EXPIRES_S),
                    encode(one.public),
                )
                for one in found
            ],
        )
    if not found:
        state.output.note("No key waits for approval.")


@click.command()
@click.argument("fingerprint")
@click.argument("name")
@permission_options
@service_options
@click.pass_obj
def approve(state: State, /, fingerprint: str, name: str, **given: Any) -> None:
    """Trust a key that asked, as NAME, and tell its owner the dispatcher's public key.

    FINGERPRINT is the whole one, as 'dispatch pending' shows it.

    \b
    Examples:
      dispatch approve 0123456789abcdef0123456789abcdef alice
      dispatch approve 0123456789abcdef0123456789abcdef ci --channel builds --version 2
    """  # noqa: D301 - click's mark
    from dispatch.crypto.encoding import encode
    from dispatch.crypto.files import key_files

    files = key_files(state.settings)
    own = files.trust().ring.current()
    if own is None:
        raise ConflictError("There is no key pair to tell the sender yet; run 'dispatch keygen' first.")
    new, asked = files.approve(_whole(fingerprint), lambda public: sender_of(name, public, given), now_s=time.time())
    text = (
        f"Your key {asked.fingerprint} is trusted as {name}. Seal tasks for the dispatcher's public key"
        f" {encode(own.public)} (fingerprint {own.kid})."
    )
    data = {
        "status": "already_registered",
        "name": name,
        "fingerprint": asked.fingerprint,
        "ada_public_key": encode(own.public),
        "dispatcher_public_key": encode(own.public),
    }
    problem = _tell(state, asked, text, data)
    if state.output.is_json:
        state.output.json({**shown_sender(new), "task_id": asked.task_id, "told": problem is None})
        return
    state.output.note(f"{name} is trusted: fingerprint {asked.fingerprint}, {may(new)}.")
    if problem is not None:
        state.output.note(f"{problem} Tell the sender yourself: the dispatcher's public key is {encode(own.public)}.")


@click.command("reject-key")
@click.argument("fingerprint")
@click.argument("reason", default="")
@service_options
@click.pass_obj
def reject_key(state: State, fingerprint: str, reason: str) -> None:
    """Reject a key that asked, and tell its owner the reason.

    It is refused whenever it asks again; 'dispatch add-key' can still trust it.

    \b
    Examples:
      dispatch reject-key 0123456789abcdef0123456789abcdef "I do not know you"
    """  # noqa: D301 - click's mark
    from dispatch.crypto.files import key_files

    if len(reason) > 500 or not reason.isprintable():
        raise UsageError("REASON is one line of at most 500 characters.")
    gone = key_files(state.settings).reject(_whole(fingerprint), reason, now_s=time.time())
    text = f"Your key {gone.fingerprint} is rejected{': ' + reason if reason else '.'}"
    data = {"status": "rejected", "fingerprint": gone.fingerprint, "reason": reason}
    problem = _tell(state, gone, text, data)
    if state.output.is_json:
        state.output.json({**data, "task_id": gone.task_id, "told": problem is None})
        return
    state.output.note(f"The key {gone.fingerprint} is rejected.")
    if problem is not None:
        state.output.note(f"{problem} Its owner will be told when the key asks again.")


def _whole(fingerprint: str) -> str:
    found = fingerprint.strip().lower()
    if not _FINGERPRINT.fullmatch(found):
        raise UsageError(
            f"{fingerprint[:80]!r} is no whole fingerprint: 32 hexadecimal digits, as 'dispatch pending' shows them."
            " A part of one could mean another key."
        )
    return found


def _tell(state: State, asked: Waiting, text: str, data: dict[str, Any]) -> str | None:
    """Put the answer on the thread of the task that asked; return a sentence if that cannot be done."""
    try:
        state.client.send(protocol.post_message(asked.task_id, text, data=data))
    except GatewayError as exc:
        return f"Task {asked.task_id} could not be told ({str(exc).rstrip('.')})."
    return None
