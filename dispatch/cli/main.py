"""The entry point: finds the command, turns what goes wrong into one sentence and an exit code."""

from __future__ import annotations

import difflib
import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

import dispatch
from dispatch.cli.options import State, common_options
from dispatch.errors import AuthenticationError, DispatchError, GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_TRY_AGAIN: Final = 75
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141

COMMANDS: Final = {
    "Processes": {
        "up": "dispatch.cli.processes:up",
        "demo": "dispatch.cli.processes:demo",
        "serve": "dispatch.cli.processes:serve",
        "ingress": "dispatch.cli.processes:ingress",
        "worker": "dispatch.cli.processes:worker",
        "mcp": "dispatch.cli.mcp:mcp",
    },
    "Tasks": {
        "create": "dispatch.cli.tasks:create",
        "list": "dispatch.cli.tasks:list_",
        "show": "dispatch.cli.tasks:show",
        "watch": "dispatch.cli.follow:watch",
        "logs": "dispatch.cli.follow:logs",
        "message": "dispatch.cli.tasks:message",
        "history": "dispatch.cli.lifecycle:history",
        "why": "dispatch.cli.lifecycle:why",
        "deps": "dispatch.cli.deps:deps",
    },
    "Changing tasks": {
        "cancel": "dispatch.cli.moves:cancel",
        "bounce": "dispatch.cli.moves:bounce",
        "complete": "dispatch.cli.moves:complete",
        "fail": "dispatch.cli.moves:fail",
        "reject": "dispatch.cli.moves:reject",
        "reopen": "dispatch.cli.moves:reopen",
        "retry": "dispatch.cli.retry:retry",
        "move": "dispatch.cli.lifecycle:move",
        "recover": "dispatch.cli.lifecycle:recover",
    },
    "Sealed tasks": {
        "keygen": "dispatch.cli.keys:keygen",
        "add-key": "dispatch.cli.keys:add_key",
        "remove-key": "dispatch.cli.keys:remove_key",
        "list-keys": "dispatch.cli.keys:list_keys",
        "pending": "dispatch.cli.registrations:pending",
        "approve": "dispatch.cli.registrations:approve",
        "reject-key": "dispatch.cli.registrations:reject_key",
        "config": "dispatch.cli.config:config",
        "sender": "dispatch.cli.sender:sender",
    },
    "Looking after it": {
        "doctor": "dispatch.cli.doctor:doctor",
        "status": "dispatch.cli.status:status",
        "top": "dispatch.cli.top:top",
        "pause": "dispatch.cli.steer:pause",
        "resume": "dispatch.cli.steer:resume",
        "drain": "dispatch.cli.steer:drain",
        "paused": "dispatch.cli.steer:paused",
        "callbacks": "dispatch.cli.callbacks:callbacks",
        "api-key": "dispatch.cli.api_key:api_key",
    },
}
"""Section of the help -> command -> where it is. A command's module is imported when it is needed."""

_PLACES: Final = {name: place for section in COMMANDS.values() for name, place in section.items()}


class Commands(click.Group):
    """A group that imports its commands late, suggests the nearest one, and ends quietly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order of the help."""
        return list(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        place = _PLACES.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        found: click.Command = getattr(import_module(module), name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was asked for, or say which one may have been meant (exit 2)."""
        if args and args[0] not in _PLACES and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], _PLACES, n=1)
            meant = f"Did you mean {close[0]!r}?" if close else "'dispatch --help' lists them."
            ctx.fail(f"There is no command {args[0]!r}. {meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in their sections."""
        for section, places in COMMANDS.items():
            rows = []
            for name in places:
                command = self.get_command(ctx, name)
                rows.append((name, command.get_short_help_str(80) if command else ""))
            with formatter.section(section):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C and a closed pipe end it without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            _forget_stdout()
            raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from None


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 69 unreachable, 75 try again later, "
    "77 not permitted, 78 configuration.",
)
@click.version_option(dispatch.__version__, message="dispatch %(version)s")
@common_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run the tasks that people and AI agents hand to machines.

    \b
    Examples:
      dispatch up                              everything on this machine
      dispatch create "Summarise README.md"    hand a task over, print its id
      dispatch watch                           see what happens
      dispatch show 7                          all about task 7
    """  # noqa: D301 - \b is click's mark, not an escape of ours
    ctx.ensure_object(State)


def run(argv: Sequence[str]) -> int:
    """Run the command line and return the exit code. Says what went wrong on stderr, in one sentence."""
    try:
        result = cli.main(args=list(argv), prog_name="dispatch", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    except DispatchError as exc:
        click.echo(f"dispatch: {_one_line(str(exc))}{_advice(exc)}", err=True)
        return _exit_code(exc)
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_BROKEN_PIPE
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Run the ``dispatch`` command."""
    # What the terminal's encoding does not have is shown as an escape, like everything else that cannot be shown.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def _exit_code(exc: DispatchError) -> int:
    if isinstance(exc, GatewayUnavailableError) and exc.retry_after_s is not None:
        return EXIT_TRY_AGAIN
    return exc.exit_code


def _advice(exc: DispatchError) -> str:
    if isinstance(exc, AuthenticationError) and "DISPATCH_ATS_TOKEN" not in str(exc):
        stop = "" if str(exc).endswith(".") else "."
        return (
            f"{stop} Name a file with a key that may do this in DISPATCH_ATS_TOKEN_FILE or with --token-file;"
            " 'dispatch api-key create' makes keys."
        )
    if isinstance(exc, GatewayUnavailableError) and exc.retry_after_s is None and "dispatch serve" not in str(exc):
        return " Start it with 'dispatch up' or 'dispatch serve', or set DISPATCH_ATS_URL; 'dispatch doctor' says more."
    return ""


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _forget_stdout() -> None:
    """Keep the interpreter from complaining about the closed pipe when it flushes stdout at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
