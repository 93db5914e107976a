"""``dispatch sender decrypt``: open the answer to a sealed task, and the sealed messages on its thread."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.cli.options import State, TaskId, common_options
from dispatch.cli.output import clean_text
from dispatch.cli.sender_keys import key_file_option
from dispatch.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dispatch.ats.model import Task
    from dispatch.crypto.content import Answer
    from dispatch.crypto.keys import KeyPair
    from dispatch.crypto.sender_files import SenderFiles


@click.command()
@click.argument("task_id", metavar="ID", type=TaskId())
@click.option("--by", metavar="KEY", help="The dispatcher's public key; default: any that you have sealed for.")
@key_file_option
@common_options
@click.pass_obj
def decrypt(state: State, files: SenderFiles, task_id: str, by: str | None) -> int:
    """Open and print the answer to a task that you sealed.

    The answer goes to stdout, sealed messages on the thread to stderr; if there is no answer, the last message is
    what you get.

    \b
    Examples:
      dispatch sender decrypt 7
      dispatch sender decrypt 7 --json | jq -r .answer
    """  # noqa: D301 - click's mark
    from dispatch.crypto import keys

    if by is None:
        dispatchers = files.known()
        if not dispatchers:
            raise UsageError("You have sealed no task with this key file; give the dispatcher's public key with --by.")
    else:
        try:
            dispatchers = [keys.read_public(by)]
        except ValueError as exc:
            raise UsageError(f"--by {exc}. It must be the dispatcher's public key in base64.") from None
    return print_opened(state, parse_task(state.client.send(protocol.get(task_id))), files.pair(), dispatchers)


def print_opened(state: State, task: Task, pair: KeyPair, dispatchers: Sequence[bytes]) -> int:
    """Print what is sealed in a task's outputs and thread, opened; return the exit code.

    Raises ConflictError when nothing is sealed there, or something does not open or belongs elsewhere.
    """
    from dispatch.crypto.sending import sealed_in

    thread = answers.messages_of(state.client.send(protocol.list_messages(task.id)))
    said = []
    for message in _sealed_messages(thread):
        try:
            said.append(_opened(message, task, pair, dispatchers))
        except ConflictError:
            # Everybody may write to a thread: what is not from the dispatcher must not hide what is.
            state.output.note("A sealed message on the thread is left out: it is not for you, or not to be trusted.")
    sealed = sealed_in(task.outputs)
    answer = None if sealed is None else _opened(sealed, task, pair, dispatchers)
    if answer is None and not said:
        plain = " It has an answer in the open; 'dispatch show' shows it." if task.outputs else ""
        why = f" ({task.reason})" if task.reason and task.status != "completed" else ""
        raise ConflictError(f"Task {task.id} has no sealed answer; it is {task.status}{why}.{plain}")
    if state.output.is_json:
        state.output.json(
            {
                "task_id": task.id,
                "status": task.status,
                "answer": None if answer is None else answer.text,
                "messages": [one.text for one in said],
            }
        )
    else:
        shown = answer or said[-1]
        for one in said:
            if one is not shown:
                click.echo(clean_text(one.text), err=True)
        state.output.text(shown.text.rstrip("\n"))
        if answer is not None and sealed is not None and sealed.get("truncated") is True:
            state.output.note("The answer is shown in part: it was longer than the dispatcher keeps.")
        if task.status != "completed":
            state.output.note(f"Task {task.id} is {task.status}.")
    return 0 if task.status == "completed" else 1


def _sealed_messages(thread: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from dispatch.crypto.sending import sealed_in

    for message in thread:
        parts = message.get("parts")
        for part in parts if isinstance(parts, list) else ():
            value = part.get("data") if isinstance(part, dict) else None
            if isinstance(part, dict) and isinstance(part.get("content"), str):
                try:
                    value = json.loads(part["content"])
                except (ValueError, RecursionError):
                    continue
            found = sealed_in(value)
            if found is not None:
                yield found


def _opened(sealed: dict[str, Any], task: Task, pair: KeyPair, dispatchers: Sequence[bytes]) -> Answer:
    from dispatch.crypto.refusal import Refusal, SealError
    from dispatch.crypto.sending import message_id_of, open_answer

    if isinstance(task.payload, dict) and task.payload.get("nonce") == sealed["encrypted_response"].get("nonce"):
        raise ConflictError(f"What stands as the answer of task {task.id} is the task itself; do not trust it.")
    for by in dispatchers:
        try:
            found = open_answer(sealed, pair=pair, by=by, task_id=task.id)
        except SealError as exc:
            if exc.refusal is Refusal.FORGED:
                continue
            raise ConflictError(f"The answer of task {task.id} is not to be trusted: {exc}.") from None
        asked = message_id_of(task.payload, pair=pair, by=by)
        if asked is not None and asked != found.re:
            raise ConflictError(f"The answer of task {task.id} is not to be trusted: it answers another message.")
        return found
    raise ConflictError(
        f"The answer of task {task.id} does not open: it is for another key pair, was changed, or comes from a"
        " dispatcher whose public key --by must name."
    )
