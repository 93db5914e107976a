"""``dispatch doctor``: all checks at once, each in a sentence, with advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dispatch.cli.options import State, common_options
from dispatch.errors import ConfigurationError
from dispatch.preflight import check_all
from dispatch.preflight.check import Check

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIGNS = {"ok": "ok", "warning": "warning", "error": "error"}


@click.command()
@common_options
@click.pass_obj
def doctor(state: State) -> int:
    """Check that everything is there and set up safely.

    Looks at settings, task service, Redis, executor, data directory, key files and
    workers. Exits 0 unless something is wrong; warnings are no failure.

    \b
    Examples:
      dispatch doctor
      dispatch doctor --json | jq '.[] | select(.state != "ok")'
    """  # noqa: D301 - click's mark
    checks = run_checks(state)
    output = state.output
    if output.is_json:
        output.json(
            [
                {"name": c.name, "ok": c.state != "error", "state": c.state, "sentence": c.sentence, "advice": c.advice}
                for c in checks
            ]
        )
    elif output.is_terminal:
        _print(state, checks)
    else:
        output.table([], [(c.state, c.name, c.sentence, c.advice) for c in checks])
    return exit_code(checks)


def run_checks(state: State) -> list[Check]:
    """Make all checks; without usable settings the first one says so and is the only one."""
    try:
        settings = state.seen_settings
    except ConfigurationError as exc:
        return [Check("settings", "error", str(exc))]
    return [Check("settings", "ok", "The settings are consistent."), *check_all(settings)]


def exit_code(checks: Iterable[Check]) -> int:
    """Return 0, or the gravest code of the errors: wrong configuration goes before unreachable."""
    return max((check.kind.exit_code for check in checks if check.state == "error"), default=0)


def _print(state: State, checks: Iterable[Check]) -> None:
    from rich.text import Text

    from dispatch.cli.output import STYLES, clean_line

    for check in checks:
        sign = Text(f"{_SIGNS[check.state]:>7}  ", STYLES[check.state])
        state.output.console.print(Text.assemble(sign, clean_line(check.sentence)), soft_wrap=True)
        if check.advice:
            state.output.console.print(Text(f"         {clean_line(check.advice)}", "dim"), soft_wrap=True)
