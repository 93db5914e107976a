"""``dispatch sender submit``: seal a task and create it."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import click

from dispatch.ats import protocol
from dispatch.ats.model import parse_task
from dispatch.cli.options import State, common_options, duration_s
from dispatch.cli.sender_keys import key_file_option
from dispatch.errors import UsageError

if TYPE_CHECKING:
    from dispatch.crypto.content import Content
    from dispatch.crypto.keys import KeyPair

_STEERING = ("callback_url", "depends_on", "quiet")


@click.command()
@click.argument("title")
@click.option("--to", metavar="KEY", required=True, help="The dispatcher's public key.")
@click.option("-d", "--description", help="What is to be done; - reads it from stdin.")
@click.option("--payload", metavar="JSON|@FILE", help="A JSON object for the executor, or @file, or @- for stdin.")
@click.option("--depends-on", metavar="ID[,ID]", multiple=True, help="Run it only after these are completed.")
@click.option("--callback-url", metavar="URL", help="Where the end of the task is to be told.")
@click.option("--quiet", is_flag=True, help="Tell nobody else about the end.")
@click.option("--expires", metavar="DURATION", help="Run it within 12h, 7d, ... or not at all; envelope 2 only.")
@click.option(
    "--envelope",
    type=click.Choice(["1", "2"]),
    default="2",
    show_default=True,
    help="1 for dispatchers that know no other.",
)
@click.option("--sender", "name", metavar="NAME", help="The name that the dispatcher knows you by; envelope 1 only.")
@click.option("--hide-title", is_flag=True, help="Envelope 1: do not show the title outside.")
@click.option("--dry-run", is_flag=True, help="Print the sealed payload and create nothing.")
@click.option("--wait", is_flag=True, help="Wait for the end and print the opened answer; exit 0 only if it completed.")
@key_file_option
@common_options
@click.pass_obj
def submit(state: State, /, title: str, **given: Any) -> int:
    """Seal a task for a dispatcher, create it and print its id.

    All that you give is inside the box. Outside stand the channel, your key and, with envelope 1, the title.

    \b
    Examples:
      dispatch sender submit "Analyse the logs" --to 3q2+7w...= -d - --wait < task.md
      dispatch sender submit "Resize" --to 3q2+7w...= --payload '{"width": 640}' --expires 7d
      dispatch sender submit "Old friend" --to 3q2+7w...= --envelope 1 --sender alice
    """  # noqa: D301 - click's mark
    from dispatch.crypto import keys
    from dispatch.crypto.opening import TITLE

    is_v2 = given["envelope"] == "2"
    if is_v2 and given["name"]:
        raise UsageError("--sender goes with --envelope 1; envelope 2 names you by your key.")
    if not is_v2 and given["expires"]:
        raise UsageError("--expires goes with --envelope 2; envelope 1 has no place for it.")
    try:
        to = keys.read_public(given["to"])
    except ValueError as exc:
        raise UsageError(f"--to {exc}. It must be the dispatcher's public key in base64.") from None
    said = _content(title, given)
    files, channel = given["files"], state.settings.ats.channels[0]
    payload = _sealed(said, files.pair(), to, channel, given)
    if given["dry_run"]:
        state.output.json(payload)
        return 0
    files.remember(to)
    outside = TITLE if is_v2 or given["hide_title"] else title
    task = parse_task(state.client.send(protocol.create(outside, channel=channel, payload=payload)))
    if not given["wait"]:
        state.output.json(task.raw) if state.output.is_json else state.output.line(task.id)
        return 0
    from dispatch.cli.follow import wait_until_ended
    from dispatch.cli.sender_answer import print_opened

    if not state.output.is_json:
        state.output.note(f"Task {task.id}.")
    ended = wait_until_ended(state, task.id)
    return print_opened(state, ended, files.pair(), [to])


def _content(title: str, given: dict[str, Any]) -> Content:
    from dispatch.cli.depending import read_names
    from dispatch.cli.tasks import read_payload, read_text
    from dispatch.crypto import content
    from dispatch.crypto.refusal import SealError

    description = given["description"]
    if description == "-" and given["payload"] == "@-":
        raise UsageError("Only one of --description and --payload can come from stdin.")
    payload = {} if given["payload"] is None else read_payload(given["payload"])
    if not isinstance(payload, dict):
        raise UsageError("--payload must be a JSON object. Nothing was created.")
    steering = [name for name in _STEERING if name in payload]
    if steering:
        raise UsageError(f"Give {steering[0]} with --{steering[0].replace('_', '-')}, not in the payload.")
    said = content.Content(
        title=title,
        description=(read_text("-") if description == "-" else description) or "",
        payload=payload,
        callback_url=given["callback_url"] or None,
        depends_on=tuple(str(name) for name in read_names(given["depends_on"])),
        quiet=given["quiet"],
    )
    try:
        content.read_v1(content.write_v1(said))
    except SealError as exc:
        raise UsageError(f"A dispatcher would refuse this task: {exc}. Nothing was created.") from None
    except ValueError as exc:
        raise UsageError(f"This task cannot be written as JSON: {exc}. Nothing was created.") from None
    return said


def _sealed(said: Content, pair: KeyPair, to: bytes, channel: str, given: dict[str, Any]) -> dict[str, Any]:
    from dispatch.crypto import sending
    from dispatch.crypto.keys import NONCE_BYTES

    nonce = secrets.token_bytes(NONCE_BYTES)
    if given["envelope"] == "1":
        return sending.seal_v1(said, pair=pair, to=to, sender=given["name"], nonce=nonce)
    return sending.seal_v2(
        said,
        pair=pair,
        to=to,
        channel=channel,
        message_id=secrets.token_hex(16),
        now_s=time.time(),
        nonce=nonce,
        expires_after_s=duration_s(given["expires"]) if given["expires"] else None,
    )
