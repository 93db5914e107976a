"""``dispatch callbacks``: which callbacks went out, which wait, and sending one again by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_time
from dispatch.cli.options import State, TaskId, common_options
from dispatch.cli.output import ago
from dispatch.errors import GatewayRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXTENSION: Final = "deliveries"
_STATES: Final = ("waiting", "delivered", "failed", "empty")
_COLUMNS: Final = ("id", "task", "event", "state", "tries", "next", "last error")


@click.group(invoke_without_command=True)
@click.option("--task", "task_id", type=TaskId(), metavar="ID", help="Only those of this task.")
@click.option("--state", "word", type=click.Choice(_STATES), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="How many at most.")
@common_options
@click.pass_context
def callbacks(ctx: click.Context, task_id: str | None, word: str | None, limit: int) -> None:
    """Show callbacks, or send one again.

    A line says how often it was tried, when it is tried next, and what went wrong last.
    States: waiting, delivered, failed (given up) and empty (nobody to call).

    \b
    Examples:
      dispatch callbacks
      dispatch callbacks --state failed
      dispatch callbacks --task 7 --json
      dispatch callbacks resend dlv_0123456789abcdef0123456789abcdef
    """  # noqa: D301 - click's mark
    if ctx.invoked_subcommand is not None:
        return
    state = ctx.find_object(State)
    if state is None:
        raise AssertionError("the group above makes the state")
    _check_extension(state)
    request = protocol.list_deliveries(task=task_id, state=word, channel=state.channels, limit=limit)
    found = _deliveries(state.client.send(request))
    output = state.output
    if output.is_json:
        output.json(found)
        return
    output.table(_COLUMNS, [_row(item, is_terminal=output.is_terminal) for item in found], styled=3)
    if not found:
        output.note("No task that ended had a callback.")


@callbacks.command()
@click.argument("delivery_id", metavar="DELIVERY_ID")
@common_options
@click.pass_obj
def resend(state: State, delivery_id: str) -> None:
    """Send a callback again.

    Whatever became of it, it goes out at once, under the same webhook-id and with all its tries before it.

    \b
    Examples:
      dispatch callbacks resend dlv_0123456789abcdef0123456789abcdef
      dispatch callbacks --state failed | cut -f1 | xargs -n1 dispatch callbacks resend
    """  # noqa: D301 - click's mark
    _check_extension(state)
    answer = state.client.send(protocol.resend_delivery(delivery_id))
    item = answer.get("delivery") if isinstance(answer, dict) else None
    item = item if isinstance(item, dict) else {}
    if state.output.is_json:
        state.output.json(item)
    else:
        state.output.line(f"{item.get('id')} is sent again")


def _check_extension(state: State) -> None:
    """Raise GatewayRejectedError when the service keeps no deliveries."""
    if EXTENSION not in answers.extensions_of(state.client.send(protocol.health())):
        raise GatewayRejectedError(
            "This task service keeps no callbacks: the ingress keeps them in Redis, and its log tells of them.",
            status=404,
        )


def _deliveries(answer: Any) -> list[dict[str, Any]]:
    rows = answer.get("deliveries") if isinstance(answer, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _row(item: Mapping[str, Any], *, is_terminal: bool) -> tuple[Any, ...]:
    due = item.get("due_at")
    if is_terminal and due:
        due = "now" if item.get("taken_until") else ago(parse_time(due), datetime.now(UTC))
    names = ("id", "task_id", "status", "state", "tries")
    return (*(item.get(name) for name in names), due, item.get("last_error"))
