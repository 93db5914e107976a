"""``dispatch sender``: the other side of sealed tasks, against any task service."""

from __future__ import annotations

import click

from dispatch.cli.sender_answer import decrypt
from dispatch.cli.sender_keys import keygen, register
from dispatch.cli.sender_submit import submit


@click.group()
def sender() -> None:
    """Make a key, have it trusted, seal tasks, open their answers.

    \b
    Examples:
      dispatch sender keygen
      dispatch sender register --wait
      dispatch sender submit "Analyse the logs" --to 3q2+7w...= --wait
      dispatch sender decrypt 7
    """  # noqa: D301 - click's mark


for _command in (keygen, register, submit, decrypt):
    sender.add_command(_command)
