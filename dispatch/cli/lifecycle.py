"""Commands on the whole lifecycle, which only our own service has: move, recover, why, history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats import protocol
from dispatch.ats.model import parse_task, parse_time
from dispatch.cli.options import State, TaskId, common_options
from dispatch.cli.output import ago
from dispatch.core.lifecycle import STATUS_OF_ATS_WORD, Status
from dispatch.core.standing import redis_down, unreachable
from dispatch.errors import GatewayRejectedError, UnknownTaskError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORDS: Final[Mapping[str, Status]] = {**STATUS_OF_ATS_WORD, **{state.value: state for state in Status}}

if TYPE_CHECKING:
    _StatusType = click.ParamType[Status]
else:
    _StatusType = click.ParamType


class StatusWord(_StatusType):
    """A state, by its own name or as ATS clients call it."""

    name = "status"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Status:
        """Read a word."""
        found = _WORDS.get(str(value).lower())
        if found is None:
            self.fail(f"{value!r} is not a status; the statuses are {', '.join(Status)}.", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Offer the names that begin with what was typed."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(state.value) for state in Status if state.value.startswith(incomplete)]


EXIT_UNREACHABLE: Final = 69
EXIT_NOT_PERMITTED: Final = 77
_id: Final = click.argument("task_id", metavar="ID", type=TaskId())
_status: Final = click.argument("status", type=StatusWord(), metavar="STATUS")


def call_tool(state: State, name: str, task_id: str, **arguments: Any) -> Any:
    """Run a Task Tool on a task, however it was named. Arguments that are None are left out."""
    try:
        uuid = parse_task(state.client.send(protocol.get(task_id))).uuid
    except UnknownTaskError as exc:
        raise GatewayRejectedError(f"There is no task {task_id}.", status=404) from exc
    if uuid is None:
        raise UsageError("The task service at this URL has no Task Tools; move tasks with cancel, complete, reopen.")
    given = {key: value for key, value in arguments.items() if value is not None}
    return state.client.send(protocol.tool(name, {"task_id": uuid, **given}))


@click.command()
@_id
@_status
@click.option("--expect", type=StatusWord(), metavar="STATUS", help="Only if the task is in this status now.")
@click.option("--note", "-n", metavar="TEXT", help="Why, for the task's history.")
@click.option("--release-lock", is_flag=True, help="Let the task's lock go as well.")
@common_options
@click.pass_obj
def move(state: State, /, task_id: str, status: Status, **given: Any) -> None:
    """Move a task to another status, if the lifecycle allows it.

    The statuses are backlog, todo, in_progress, in_review, completed, failed, blocked, cancelled, skipped.

    \b
    Examples:
      dispatch move 7 todo
      dispatch move 7 completed --expect in_review --note "looks good"
    """  # noqa: D301 - click's mark
    task = call_tool(
        state,
        "core_transition_task",
        task_id,
        to_status=status.value,
        expected_from_status=given["expect"],
        note=given["note"],
        release_lock=given["release_lock"] or None,
    )
    _tell(state, task_id, task)


@click.command()
@_id
@_status
@click.option("--note", "-n", metavar="TEXT", required=True, help="Why; it is recorded.")
@common_options
@click.pass_obj
def recover(state: State, task_id: str, status: Status, note: str) -> None:
    """Put a stuck task into todo, failed or in_review, whoever holds it.

    Whoever held the task can do nothing with it any more.

    \b
    Examples:
      dispatch recover 7 todo --note "the agent's machine is gone"
    """  # noqa: D301 - click's mark
    _tell(state, task_id, call_tool(state, "core_recover_task", task_id, to_status=status.value, note=note))


def _tell(state: State, task_id: str, task: Any) -> None:
    if state.output.is_json:
        state.output.json(task)
        return
    held = f", locked by {task['locked_by_name']}" if task.get("locked_by") else ""
    state.output.line(f"Task {task_id} is in {task['status']}{held}.")


@click.command()
@_id
@common_options
@click.pass_obj
def why(state: State, task_id: str) -> int:
    """Say why a task is not running, and what to do about it.

    The weightiest reason comes first. Exits 69 when the task service cannot be reached, and 77 when it refuses the key.

    \b
    Examples:
      dispatch why 7
    """  # noqa: D301 - click's mark
    from dispatch.cli.advice import named
    from dispatch.cli.first_failures import advice, ends_that, first_failures
    from dispatch.cli.fleet_view import look
    from dispatch.cli.stuck import explained

    seen = look(state, at_tasks=False)
    down = unreachable(seen.fleet)
    if down is not None:
        told = [one for one in (down, redis_down(seen.fleet)) if one is not None]
        _tell_why(state, [{"code": one.code, "text": one.text, "next": one.advice} for one in told], {})
        return EXIT_NOT_PERMITTED if seen.fleet.is_key_refused else EXIT_UNREACHABLE
    try:
        task = parse_task(state.client.send(protocol.get(task_id)))
    except UnknownTaskError as exc:
        raise GatewayRejectedError(f"There is no task {task_id}.", status=404) from exc
    found = explained(state, seen, task)
    reasons = found["reasons"]
    if reasons and (ends := ends_that(reasons[0], task)):
        # Done again alone it would fail for the same reason.
        reasons = [{**reasons[0], "next": advice(*first_failures(state, ends))}, *reasons[1:]]
    _tell_why(state, [{**one, "next": named(one["next"], task_id)} for one in reasons], found)
    return 0


def _tell_why(state: State, told: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    if state.output.is_json:
        state.output.json({"running": None, **whole, "reasons": told})
        return
    if not told:
        state.output.line(whole["summary"])
    for reason in told:
        state.output.line(reason["text"])
        state.output.advice(reason["next"])


@click.command()
@_id
@common_options
@click.pass_obj
def history(state: State, task_id: str) -> None:
    """Show what happened to a task: every move, lock and message, oldest first.

    What its attempts wrote while they ran is shown by 'dispatch logs'.

    \b
    Examples:
      dispatch history 7
    """  # noqa: D301 - click's mark
    lines: list[Any] = []
    since: int | None = 0
    while since is not None:
        page = call_tool(state, "task_history", task_id, since=since, limit=200)
        lines += page["events"]
        since = page["next_since"]
    if state.output.is_json:
        state.output.json(lines)
        return
    told = [line for line in lines if line.get("kind") != "log"]
    state.output.table(("time", "event", "status", "by", "note"), [_row(state, line) for line in told])


def _row(state: State, line: Mapping[str, Any]) -> tuple[str, ...]:
    at = ago(parse_time(line["at"])) if state.output.is_terminal else str(line["at"])
    moved = f"{line['from']} -> {line['to']}" if "from" in line else line.get("to", "")
    return at, line["event"], moved, line["agent_name"], line.get("note", "")
