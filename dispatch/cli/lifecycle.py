"""Commands on the whole lifecycle, which only our own service has: move, recover, why, history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats import protocol
from dispatch.ats.model import parse_task, parse_time
from dispatch.cli.options import State, TaskId, common_options
from dispatch.cli.output import ago
from dispatch.core.lifecycle import STATUS_OF_ATS_WORD, Status
from dispatch.core.waiting import Facts, Needed, reasons
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


_NEEDED_MAX: Final = 32
"""How many dependencies are read one by one from a service without the Task Tools."""
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


def explained(state: State, task_id: str) -> dict[str, Any]:
    """Return why a task is not running, as ``explain`` answers; from what can be seen where there are no Task Tools."""
    try:
        task = parse_task(state.client.send(protocol.get(task_id)))
    except UnknownTaskError as exc:
        raise GatewayRejectedError(f"There is no task {task_id}.", status=404) from exc
    if task.uuid is not None:
        found: dict[str, Any] = state.client.send(protocol.tool("explain", {"task_id": task.uuid}))
        return found
    needed, missing = [], []
    for name in task.depends_on[:_NEEDED_MAX]:
        try:
            one = parse_task(state.client.send(protocol.get(name)))
        except GatewayRejectedError:
            missing.append(f"#{name}")
            continue
        if one.status != "completed":
            needed.append(Needed(f"#{one.id}", STATUS_OF_ATS_WORD.get(one.status, Status.TODO)))
    facts = Facts(
        status=STATUS_OF_ATS_WORD.get(task.status, Status.TODO),
        waits_for=needed,
        missing=missing,
        circle=f"#{task.id} -> #{task.id}" if task.id in task.depends_on else "",
        holder=(task.raw or {}).get("assignee_name") or task.assignee_id if task.status == "in_progress" else None,
        reason=task.reason,
        is_running=task.status == "in_progress",
        listeners=None,
    )
    told = reasons(facts)
    summary = " ".join(reason.text for reason in told) or "It is in progress."
    shown = [{"code": one.code, "text": one.text, "next": one.advice} for one in told]
    running = not told
    return {"task_id": task.id, "status": task.status, "running": running, "summary": summary, "reasons": shown}


@click.command()
@_id
@common_options
@click.pass_obj
def why(state: State, task_id: str) -> None:
    """Say why a task is not running, and what to do about it.

    \b
    Examples:
      dispatch why 7
    """  # noqa: D301 - click's mark
    found = explained(state, task_id)
    if state.output.is_json:
        state.output.json(found)
        return
    if not found["reasons"]:
        state.output.line(found["summary"])
    for reason in found["reasons"]:
        state.output.line(reason["text"])
        state.output.note(reason["next"])


@click.command()
@_id
@common_options
@click.pass_obj
def history(state: State, task_id: str) -> None:
    """Show what happened to a task: every move, lock and message, oldest first.

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
    state.output.table(("time", "event", "status", "by", "note"), [_row(state, line) for line in lines])


def _row(state: State, line: Mapping[str, Any]) -> tuple[str, ...]:
    at = ago(parse_time(line["at"])) if state.output.is_terminal else str(line["at"])
    moved = f"{line['from']} -> {line['to']}" if "from" in line else line.get("to", "")
    return at, line["event"], moved, line["agent_name"], line.get("note", "")
