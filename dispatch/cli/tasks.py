"""Commands on tasks that start or end no work: create, list, show, message."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats import answers, protocol
from dispatch.ats.model import Task, parse_task, parse_time
from dispatch.cli.options import Priority, State, TaskId, common_options, refuse_constant
from dispatch.cli.output import ago, duration
from dispatch.cli.thread import THREAD_MAX, outcome, print_messages, print_response, shown_progress, thread_is_cut
from dispatch.core.lifecycle import ATS_WORD
from dispatch.errors import UsageError
from dispatch.setting_kinds import reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT_BYTES_MAX: Final = 4_194_304
"""How much is read from stdin or a file; the service's own limits are lower."""

LIST_FIELDS: Final = (
    "id,uuid,title,type,channel,priority,status,assignee_id,assignee_name,attempts,not_before,created_at,updated_at"
)


@click.command()
@click.argument("title")
@click.option("-d", "--description", help="What is to be done; - reads it from stdin.")
@click.option("--payload", metavar="JSON|@FILE", help="JSON for the executor, or @file, or @- for stdin.")
@click.option("--priority", type=Priority(), help="1 to 10 (10 is most urgent), or urgent, high, medium, low, none.")
@click.option("--type", "type_", metavar="NAME", help="Type of the task; default: task.")
@click.option("--depends-on", metavar="ID[,ID]", multiple=True, help="Run it only after these are completed.")
@click.option("--wait", is_flag=True, help="Wait for the end and print the response; exit 0 only if it completed.")
@common_options
@click.pass_obj
def create(state: State, /, title: str, **given: Any) -> int:
    """Create a task and print its id.

    \b
    Examples:
      dispatch create "Summarise README.md"
      dispatch create "Nightly report" -d - --priority high < report.md
      dispatch create "Resize" --payload '{"width": 640}' --channel images --wait
      dispatch create "Report" --depends-on 100,101
    """  # noqa: D301 - click's mark
    description, payload = given["description"], given["payload"]
    if description == "-" and payload == "@-":
        raise UsageError("Only one of --description and --payload can come from stdin.")
    fields = {
        "description": read_text("-") if description == "-" else description,
        "payload": None if payload is None else read_payload(payload),
        "priority": given["priority"],
        "type": given["type_"],
        "channel": state.settings.ats.channels[0],
    }
    if given["depends_on"]:
        from dispatch.cli.depending import with_dependencies

        fields = with_dependencies(state, fields, given["depends_on"])
    answer = state.client.send(protocol.create(title, **fields))
    task = parse_task(answer)
    if not given["wait"]:
        state.output.json(task.raw) if state.output.is_json else state.output.line(task.id)
        return 0
    return _wait(state, task)


def _wait(state: State, task: Task) -> int:
    from dispatch.cli.follow import wait_until_ended

    if not state.output.is_json:
        state.output.line(task.id)
    task = wait_until_ended(state, task.id)
    if state.output.is_json:
        state.output.json(task.raw)
    else:
        print_response(state.output, task)
        state.output.note(outcome(task))
    return 0 if task.status == "completed" else 1


def read_payload(given: str) -> Any:
    """Read a payload from the command line or a file. Raises UsageError: what is no JSON is never replaced."""
    text = read_text(given[1:]) if given.startswith("@") else given
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"--payload is not JSON: {exc}. Nothing was created.") from exc


def read_text(name: str) -> str:
    """Return the text of a file, or of stdin for ``-``. Raises UsageError when it cannot be read or is too long."""
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(TEXT_BYTES_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(TEXT_BYTES_MAX + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{'stdin' if name == '-' else name} cannot be read: {reason_of(exc)}.") from exc
    if len(raw) > TEXT_BYTES_MAX:
        raise UsageError(f"{'stdin' if name == '-' else name} holds more than {TEXT_BYTES_MAX} bytes.")
    return text


def _moment(_: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    found = parse_time(value)
    if found is None:
        raise click.BadParameter("must be a time such as 2026-11-21 or 2026-11-21T08:00:00Z.", param=param)
    return found.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def statuses(_: click.Context, param: click.Parameter, value: Sequence[str]) -> str | None:
    """Read the words of an option that can be given several times: ATS words, separated by commas."""
    words = [word.strip().replace("-", "_") for item in value for word in item.split(",") if word.strip()]
    for word in words:
        if word not in ATS_WORD.values():
            known = ", ".join(ATS_WORD.values())
            raise click.BadParameter(f"{word!r} is not a status; the statuses are {known}.", param=param)
    return ",".join(words) or None


def more_statuses(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    """Offer the statuses that the last of several words, separated by commas, may become."""
    before, comma, begun = typed.rpartition(",")
    return [f"{before}{comma}{word}" for word in ATS_WORD.values() if word.startswith(begun)]


status_option: Final = click.option(
    "--status",
    "-s",
    multiple=True,
    callback=statuses,
    shell_complete=more_statuses,
    metavar="STATUS[,STATUS]",
    help="Only these.",
)


@click.command("list")
@status_option
@click.option("--type", "type_", metavar="NAME", help="Only this type.")
@click.option("--assignee", metavar="ID", help="Only tasks held by this actor.")
@click.option("--search", metavar="TEXT", help="Only tasks with this text in them.")
@click.option("--priority", type=Priority(), help="Only this priority.")
@click.option("--min-priority", type=Priority(), help="Only this priority and more urgent ones.")
@click.option("--max-priority", type=Priority(), help="Only this priority and less urgent ones.")
@click.option("--created-after", callback=_moment, metavar="TIME", help="Only tasks created after this time.")
@click.option("--updated-after", callback=_moment, metavar="TIME", help="Only tasks changed after this time.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@click.option("--offset", type=click.IntRange(0), help="How many to leave out first.")
@click.option(
    "--sort",
    type=click.Choice(["created_at", "updated_at", "priority", "title"]),
    default="created_at",
    help="Order by.",
)
@click.option("--asc", is_flag=True, help="Oldest, least or first first.")
@common_options
@click.pass_obj
def list_(state: State, /, **given: Any) -> None:
    """List tasks, the newest first.

    Tasks of all channels, unless --channel names some.

    \b
    Examples:
      dispatch list
      dispatch list --status pending,in_progress --channel images
      dispatch list --status failed --json | jq '.[].id'
    """  # noqa: D301 - click's mark
    if given["priority"] is not None and (given["min_priority"] or given["max_priority"]):
        raise UsageError("Give --priority, or --min-priority and --max-priority, not both.")
    filters = {
        "status": given["status"],
        "type": given["type_"],
        "channel": state.channels,
        "assignee_id": given["assignee"],
        "search": given["search"],
        "priority": given["priority"],
        "min_priority": given["min_priority"],
        "max_priority": given["max_priority"],
        "created_after": given["created_after"],
        "updated_after": given["updated_after"],
        "limit": given["limit"],
        "offset": given["offset"],
        "sort_by": given["sort"],
        "sort_dir": "asc" if given["asc"] else "desc",
    }
    if not state.output.is_json and "fields" in answers.extensions_of(state.client.send(protocol.health())):
        filters["fields"] = LIST_FIELDS
    tasks = answers.tasks_of(state.client.send(protocol.list_tasks(**filters)))
    if state.output.is_json:
        state.output.json([task.raw for task in tasks])
        return
    is_terminal = state.output.is_terminal
    if not tasks and is_terminal:
        state.output.line("No tasks.")
        return
    state.output.table(
        ["ID", "STATUS", "PRIO", "CHANNEL", "CREATED", "TITLE"],
        [_row(task, people=is_terminal) for task in tasks],
        styled=1,
    )
    if len(tasks) == given["limit"]:
        state.output.note(f"There may be more: --offset {(given['offset'] or 0) + len(tasks)} shows the next.")


def _row(task: Task, *, people: bool) -> tuple[Any, ...]:
    created = (task.raw or {}).get("created_at")
    return (
        task.id,
        task.status,
        task.priority,
        task.channel,
        ago(parse_time(created)) if people else created,
        task.title,
    )


@click.command()
@click.argument("task_id", metavar="ID", type=TaskId())
@common_options
@click.pass_obj
def show(state: State, task_id: str) -> None:
    """Show all about a task: fields, lease, thread, response.

    \b
    Examples:
      dispatch show 7
      dispatch show 7 --json | jq .outputs
    """  # noqa: D301 - click's mark
    task = parse_task(state.client.send(protocol.get(task_id)))
    messages = answers.messages_of(state.client.send(protocol.list_messages(task_id)))
    if state.output.is_json:
        state.output.json({**(task.raw or {}), "messages": messages})
        return
    reason = str((task.raw or {}).get("reason") or "")
    # What a program said last has lines of its own, and is read as such.
    whole = reason if state.output.is_terminal and "\n" in reason else ""
    story = [(name, text.partition("\n")[0] if name == "reason" and whole else text) for name, text in _story(task)]
    state.output.fields([*story, ("progress", shown_progress(answers.progress_of(messages, task)))])
    for name, text in (("Reason", whole), ("Description", task.description), ("Payload", _pretty(task.payload))):
        if text:
            state.output.heading(name)
            state.output.text(text)
    if messages:
        state.output.heading("Thread")
        if len(messages) >= THREAD_MAX:
            state.output.note(thread_is_cut(len(messages)))
        print_messages(state.output, messages)
    if task.outputs:
        state.output.heading("Response")
        print_response(state.output, task)


def _pretty(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, indent=2)


def _story(task: Task) -> list[tuple[str, Any]]:
    raw = task.raw or {}
    now = datetime.now(UTC)
    waits = task.not_before_at if task.not_before_at and task.not_before_at > now else None
    attempts = f"{task.attempts} counted" if task.attempts else ""
    losses = f"{task.lease_losses} lost with their lease" if task.lease_losses else ""
    return [
        ("task", task.id),
        ("title", task.title),
        ("status", task.status + (f" (may be claimed {ago(waits, now)})" if waits else "")),
        ("reason", raw.get("reason")),
        ("uuid", task.uuid),
        ("type", task.type),
        ("channel", task.channel),
        ("priority", task.priority),
        ("held by", _holder(task, now)),
        ("runner", task.runner),
        ("attempts", ", ".join(part for part in (attempts, losses) if part)),
        ("fencing token", task.fencing_token),
        ("created", _when(raw.get("created_at"), now, raw.get("source_name"))),
        ("started", _when(raw.get("started_at"), now)),
        ("ended", _when(raw.get("completed_at"), now)),
        ("changed", _when(raw.get("updated_at"), now)),
    ]


def _when(value: Any, now: datetime, by: Any = None) -> str:
    at = parse_time(value)
    if at is None:
        return ""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S} ({ago(at, now)})" + (f" by {by}" if by else "")


def _holder(task: Task, now: datetime) -> str:
    raw = task.raw or {}
    if task.status != "in_progress" or not task.assignee_id:
        return ""
    name = raw.get("assignee_name")
    who = f"{name} ({task.assignee_id})" if name and name != task.assignee_id else task.assignee_id
    left_ms = raw.get("lease_ttl_ms")
    if isinstance(left_ms, int | float):
        left_s = left_ms / 1000
    elif task.lease_expires_at is not None:
        left_s = (task.lease_expires_at - now).total_seconds()
    else:
        return f"{who}, without a lease"
    return f"{who}, lease " + (f"for another {duration(left_s)}" if left_s > 0 else f"ran out {duration(left_s)} ago")


class _TextLast(click.Command):
    """A command whose arguments are taken literally, even if they begin with a dash; only known options are options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the options first and a -- before the arguments."""
        options = {
            name: param for param in self.get_params(ctx) for name in param.opts if isinstance(param, click.Option)
        }
        found, texts, rest = [], [], list(args)
        while rest:
            arg = rest.pop(0)
            name, has_value, _ = arg.partition("=")
            if arg == "--":
                texts += rest
                break
            if name not in options or not name.startswith("-"):
                texts.append(arg)
                continue
            found.append(arg)
            is_flag = getattr(options[name], "is_flag", False)
            if not is_flag and not has_value and rest:
                found.append(rest.pop(0))
        return super().parse_args(ctx, [*found, "--", *texts])


@click.command(cls=_TextLast)
@click.argument("task_id", metavar="ID", type=TaskId())
@click.argument("text")
@common_options
@click.pass_obj
def message(state: State, task_id: str, text: str) -> None:
    """Append a message to a task's thread; - reads it from stdin.

    \b
    Examples:
      dispatch message 7 "Use the new template"
      dispatch message 7 "--verbose is missing"
      git diff | dispatch message 7 -
    """  # noqa: D301 - click's mark
    body = read_text("-") if text == "-" else text
    if not body.strip():
        raise UsageError("The message is empty.")
    answer = state.client.send(protocol.post_message(task_id, body))
    if state.output.is_json:
        state.output.json(answer.get("message", answer) if isinstance(answer, dict) else answer)
    else:
        state.output.note(f"Added to task {task_id}.")
