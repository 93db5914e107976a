"""``dispatch retry``: tasks that ended badly once more, and tasks that pause between attempts at once."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click
import redis

from dispatch.ats import answers, fences, protocol
from dispatch.ats.model import parse_task
from dispatch.cli.options import State, TaskId, common_options
from dispatch.cli.refusals import Refusals
from dispatch.errors import GatewayRejectedError, UnknownTaskError, UsageError
from dispatch.preflight.broker import open_redis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.ats.model import Task

_PAGE: Final = 500
_ENDED: Final = ("failed", "cancelled", "rejected")
_INSTEAD: Final = {
    "completed": " 'dispatch reopen' runs it again.",
    "in_review": " 'dispatch bounce' sends it back, with a note for its next attempt.",
    "blocked": " 'dispatch move ID todo' offers it.",
    "backlog": " 'dispatch move ID todo' offers it.",
}
"""What helps with a task that cannot be retried, by its state."""


@click.command()
@click.argument("task_ids", metavar="[ID]...", type=TaskId(), nargs=-1)
@click.option("--failed", is_flag=True, help="All failed tasks of the channel that --channel names.")
@click.option("--reason", "-r", metavar="TEXT", help="Why, for the task's history.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def retry(state: State, /, task_ids: Sequence[str], failed: bool, reason: str | None, yes: bool) -> None:  # noqa: FBT001
    """Offer tasks again.

    Failed, cancelled and rejected ones have all their attempts ahead of them again; one that pauses between attempts
    is offered at once, with the attempts that it has left.

    \b
    Examples:
      dispatch retry 7 8
      dispatch retry --failed --channel reports
    """  # noqa: D301 - click's mark
    if bool(task_ids) == failed:
        raise UsageError("Name the tasks, or give --failed with --channel.")
    if failed:
        task_ids = _failed(state)
        if not task_ids:
            state.output.note("No task there has failed.")
            return
        if not yes and sys.stdin.isatty() and state.output.is_terminal:
            click.confirm(f"Offer {len(task_ids)} failed tasks of {', '.join(state.channels or ())} again?", abort=True)
    done, refusals = _each(state, task_ids, reason)
    if failed:
        state.output.note(f"{len(done)} of {len(task_ids)} failed tasks are offered again.")
    if state.output.is_json and done:
        state.output.json(done[0] if len(task_ids) == 1 and not failed else done)
    refusals.raise_last()


def _each(state: State, task_ids: Sequence[str], reason: str | None) -> tuple[list[Any], Refusals]:
    """Try each task; return those that are offered again, and what was refused."""
    extensions = answers.extensions_of(state.client.send(protocol.health()))
    refusals = Refusals(task_ids)
    done = []
    for task_id in task_ids:
        try:
            done.append(_again(state, extensions, task_id, reason))
        except GatewayRejectedError as exc:
            refusals.add(task_id, exc)
            continue
        if not state.output.is_json:
            state.output.line(f"Task {task_id} is offered again.")
    return done, refusals


def _failed(state: State) -> list[str]:
    if not state.channels:
        raise UsageError("--failed needs --channel, so that not everything that ever failed runs again.")
    found: list[str] = []
    while True:
        rows = answers.tasks_of(
            state.client.send(
                protocol.list_tasks(status="failed", channel=state.channels, limit=_PAGE, offset=len(found))
            )
        )
        if not rows:
            return sorted(set(found), key=found.index)
        found += [task.id for task in rows]


def _again(state: State, extensions: frozenset[str], task_id: str, reason: str | None) -> Any:
    """Offer one task again and return it. Raises GatewayRejectedError when it neither ended nor pauses."""
    try:
        task = parse_task(state.client.send(protocol.get(task_id)))
    except UnknownTaskError as exc:
        raise GatewayRejectedError(f"There is no task {task_id}.", status=404) from exc
    if task.status in _ENDED:
        _forget_counts(state, extensions, task)
        answer = state.client.send(protocol.reopen(task_id, reason))
    elif task.status == "pending":
        answer = _hurry(state, extensions, task, reason)
    else:
        raise GatewayRejectedError(
            f"Task {task_id} is {task.status}: there is nothing to retry.{_INSTEAD.get(task.status, '')}", status=409
        )
    found = parse_task(answer)
    return found.raw or {"id": found.id}


def _hurry(state: State, extensions: frozenset[str], task: Task, reason: str | None) -> Any:
    if "hurry" in extensions:
        return state.client.send(protocol.hurry(task.id, reason))
    with _redis(state) as client:
        client.delete(fences.not_before_key(state.endpoint.base_url, task.id))
    return task.raw


def _forget_counts(state: State, extensions: frozenset[str], task: Task) -> None:
    """Set the counters back that Redis keeps for a service without tokens; ours does that itself."""
    if extensions >= answers.FENCING_EXTENSIONS:
        return
    url = state.endpoint.base_url
    with _redis(state) as client:
        client.delete(fences.attempts_key(url, task.id), fences.not_before_key(url, task.id))


@contextlib.contextmanager
def _redis(state: State) -> Any:
    try:
        with contextlib.closing(open_redis(state.seen_settings.broker)) as client:
            yield client
    except redis.RedisError:
        state.output.note("Redis does not answer, and it counts the attempts of this service's tasks.")
