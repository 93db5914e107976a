"""``dispatch sender keygen`` and ``register``: a key of one's own, and having it trusted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.cli.options import State, common_options, json_option
from dispatch.errors import ConflictError, GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.model import Task
    from dispatch.crypto.sender_files import SenderFiles

F = TypeVar("F", bound="Callable[..., Any]")

TITLE: Final = "register"
LOOK_S: Final = 2.0
_ANSWERS: Final = ("pending_approval", "already_registered", "rejected")


def _files(_: click.Context, __: click.Parameter, value: str | None) -> SenderFiles:
    import platformdirs

    from dispatch.crypto.sender_files import KEY_FILE_NAME, SenderFiles

    default = Path(platformdirs.user_config_dir("dispatch")) / KEY_FILE_NAME
    return SenderFiles(Path(value).expanduser().absolute() if value else default)


key_file_option: Final = click.option(
    "--key-file",
    "files",
    metavar="FILE",
    callback=_files,
    help="Your key pair; default: my-keys.json in the user's configuration directory.",
)


@click.command()
@key_file_option
@json_option
@click.pass_obj
def keygen(state: State, files: SenderFiles) -> None:
    """Make your key pair and print its public key.

    \b
    Examples:
      dispatch sender keygen
      dispatch sender keygen --key-file ci/my-keys.json
    """  # noqa: D301 - click's mark
    from dispatch.crypto.encoding import encode

    pair = files.make()
    if state.output.is_json:
        state.output.json({"public_key": encode(pair.public), "fingerprint": pair.kid, "key_file": str(files.path)})
        return
    click.echo(encode(pair.public))
    state.output.note(f"Fingerprint {pair.kid}. The key pair is in {files.path}; nobody else may read it.")


@click.command()
@key_file_option
@click.option("--wait", is_flag=True, help="Wait until the operator has answered.")
@common_options
@click.pass_obj
def register(state: State, files: SenderFiles, *, wait: bool) -> int:
    """Ask the dispatcher of a channel to trust your key.

    Creates a task with the public key and prints its id. Tell the operator your fingerprint by another way, and compare
    the fingerprint of the dispatcher's key that you get: whoever keeps the tasks could have changed either.

    \b
    Examples:
      dispatch sender register --channel builds
      dispatch sender register --wait
    """  # noqa: D301 - click's mark
    from dispatch.crypto.encoding import encode

    pair = files.pair()
    channel = state.settings.ats.channels[0]
    request = protocol.create(TITLE, channel=channel, payload={"pubkey": encode(pair.public)})
    task = parse_task(state.client.send(request))
    state.output.note(f"Your fingerprint is {pair.kid}.")
    if not wait:
        state.output.json(task.raw) if state.output.is_json else state.output.line(task.id)
        return 0
    answer = _answer(state, task, pair.kid)
    if state.output.is_json:
        state.output.json({**answer, "task_id": task.id})
    elif answer["status"] == "already_registered":
        _print_trusted(state, answer)
    else:
        state.output.note(f"Your key is rejected. {answer.get('reason') or ''}")
    return 0 if answer["status"] == "already_registered" else 1


def _answer(state: State, task: Task, fingerprint: str) -> dict[str, Any]:
    """Wait for the dispatcher's answer, and, if it is that a person must decide, for that."""
    from dispatch.cli.follow import wait_until_ended

    ended = wait_until_ended(state, task.id)
    if ended.status != "completed":
        raise ConflictError(f"Task {task.id} {ended.status}: {ended.reason or 'the service does not say why'}")
    outputs = ended.outputs if isinstance(ended.outputs, list) else [ended.outputs]
    found = next((one for one in outputs if isinstance(one, dict) and one.get("status") in _ANSWERS), None)
    if found is None:
        raise ConflictError(f"Task {task.id} completed, but not by a dispatcher that knows registrations.")
    if found["status"] == "pending_approval":
        state.output.note("Your key waits for the operator's approval. Ctrl-C ends the waiting, not the registration.")
    is_told = False
    while found["status"] == "pending_approval":
        time.sleep(LOOK_S)
        try:
            messages = answers.messages_of(state.client.send(protocol.list_messages(task.id)))
        except GatewayUnavailableError as exc:
            if not is_told:
                state.output.note(f"{exc} Trying again.")
                is_told = True
            continue
        found = next((data for data in map(_data, messages) if data.get("fingerprint") == fingerprint), found)
    return found


def _data(message: dict[str, Any]) -> dict[str, Any]:
    parts = message.get("parts")
    for part in parts if isinstance(parts, list) else ():
        data = part.get("data") if isinstance(part, dict) else None
        if isinstance(data, dict) and data.get("status") in _ANSWERS:
            return data
    return {}


def _print_trusted(state: State, answer: dict[str, Any]) -> None:
    from dispatch.crypto import keys

    text = answer.get("dispatcher_public_key") or answer.get("ada_public_key")
    try:
        fingerprint = keys.kid_of(keys.read_public(text))
    except ValueError as exc:
        raise ConflictError(f"The dispatcher's public key in the answer {exc}.") from None
    state.output.line(str(text))
    state.output.note(
        f"You are trusted as {answer.get('name')}. This is the dispatcher's public key; compare its fingerprint"
        f" {fingerprint} with the operator's before you seal for it."
    )
