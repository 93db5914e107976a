"""``dispatch config``: the policy that can be changed while everything runs."""

from __future__ import annotations

import click

from dispatch.cli.options import State, json_option

KEYS = ("require_encryption",)


@click.command()
@click.argument("key", required=False, type=click.Choice(KEYS))
@click.argument("value", required=False, type=click.Choice(["true", "false"]))
@json_option
@click.pass_obj
def config(state: State, key: str | None, value: str | None) -> None:
    """Show or change whether only sealed tasks are accepted.

    A change counts at once, for every process that uses this directory of keys.

    \b
    Examples:
      dispatch config
      dispatch config require_encryption
      dispatch config require_encryption true
    """  # noqa: D301 - click's mark
    from dispatch.crypto.files import key_files

    files = key_files(state.settings)
    if value is not None:
        files.set_require_encryption(required=value == "true")
    required = files.trust().require_encryption
    shown = str(required).lower()
    if state.output.is_json:
        state.output.json({"require_encryption": required})
    elif key is None:
        state.output.fields([("require_encryption", shown)])
    elif value is None:
        state.output.line(shown)
    if value == "false" and required:
        state.output.note(
            "The file says false, but the setting require_encryption is true and wins: only sealed tasks are accepted."
        )
    elif value is not None:
        state.output.note("Only sealed tasks are accepted." if required else "Tasks in the open are accepted.")
