"""Commands that move a task through its lifecycle: cancel, complete, fail, reject, reopen, bounce."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.cli.options import State, TaskId, common_options, refuse_constant
from dispatch.cli.refusals import Refusals
from dispatch.errors import GatewayRejectedError, GatewayUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ids: Final = click.argument("task_ids", metavar="ID...", type=TaskId(), nargs=-1, required=True)


def _reason(help_text: str) -> Callable[[Any], Any]:
    return click.option("--reason", "-r", metavar="TEXT", help=help_text)


@click.command()
@_ids
@_reason("Why, for the task's history.")
@common_options
@click.pass_obj
def cancel(state: State, task_ids: Sequence[str], reason: str | None) -> None:
    """Cancel tasks. What runs is stopped within a second, on whichever host.

    \b
    Examples:
      dispatch cancel 7
      dispatch cancel 7 8 9 --reason "not needed any more"
    """  # noqa: D301 - click's mark
    _each(state, task_ids, "cancelled", lambda task_id: protocol.cancel(task_id, reason))


@click.command()
@_ids
@click.option("--response", metavar="TEXT", help="The result, as text.")
@click.option("--outputs", metavar="JSON", help="The result, as JSON; a list, or one object.")
@common_options
@click.pass_obj
def complete(state: State, task_ids: Sequence[str], response: str | None, outputs: str | None) -> None:
    """Complete tasks by hand, or approve the result of tasks in review.

    \b
    Examples:
      dispatch complete 7
      dispatch complete 7 --response "Done by hand"
      dispatch complete 7 --outputs '[{"response": "x"}]'
    """  # noqa: D301 - click's mark
    if response is not None and outputs is not None:
        raise UsageError("Give --response or --outputs, not both.")
    found = None if response is None else [{"response": response}]
    if outputs is not None:
        found = _outputs(outputs)
    _each(state, task_ids, "completed", lambda task_id: protocol.complete(task_id, found))


def _outputs(text: str) -> list[Any]:
    try:
        found = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"--outputs is not JSON: {exc}. Nothing was changed.") from exc
    return found if isinstance(found, list) else [found]


@click.command()
@_ids
@_reason("Why, for the task's history.")
@common_options
@click.pass_obj
def fail(state: State, task_ids: Sequence[str], reason: str | None) -> None:
    """Fail tasks for good, without another attempt.

    \b
    Examples:
      dispatch fail 7 --reason "the input is gone"
    """  # noqa: D301 - click's mark
    _each(state, task_ids, "failed", lambda task_id: protocol.fail(task_id, reason))


@click.command()
@_ids
@_reason("Why, for the task's history.")
@common_options
@click.pass_obj
def reject(state: State, task_ids: Sequence[str], reason: str | None) -> None:
    """Refuse pending tasks for good.

    \b
    Examples:
      dispatch reject 7 --reason "not ours"
    """  # noqa: D301 - click's mark
    _each(state, task_ids, "rejected", lambda task_id: protocol.reject(task_id, reason))


@click.command()
@_ids
@_reason("Why, for the task's history.")
@click.option("--dependents", is_flag=True, help="Reopen what failed only because of them as well, and say which.")
@common_options
@click.pass_obj
def reopen(state: State, task_ids: Sequence[str], reason: str | None, dependents: bool) -> None:  # noqa: FBT001
    """Bring ended tasks back to pending.

    They have all their attempts ahead of them again. With --dependents a task
    that completed meanwhile stays completed, and what stands behind it is reopened.

    \b
    Examples:
      dispatch reopen 7
      dispatch reopen 7 --dependents
    """  # noqa: D301 - click's mark
    if not dependents:
        _each(state, task_ids, "reopened", lambda task_id: protocol.reopen(task_id, reason))
        return
    if "depends_on" not in answers.extensions_of(state.client.send(protocol.health())):
        raise UsageError("The task service at this URL cannot reopen dependents; reopen them one by one.")
    refusals = Refusals(task_ids)
    results = []
    for task_id in task_ids:
        try:
            answer = _reopen_all(state, task_id, reason)
        except GatewayRejectedError as exc:
            refusals.add(task_id, exc)
            continue
        results.append(answer)
        _tell_reopened(state, answer)
    if state.output.is_json and results:
        state.output.json(results[0] if len(task_ids) == 1 else results)
    refusals.raise_last()


@click.command()
@click.argument("task_id", metavar="ID", type=TaskId())
@click.argument("note")
@common_options
@click.pass_obj
def bounce(state: State, task_id: str, note: str) -> None:
    """Send a task in review back, with a note on what is to be better.

    Its next attempt reads the note, the earlier result and what people said on
    the thread. It has all its attempts ahead of it again. 'dispatch complete ID'
    approves instead.

    \b
    Examples:
      dispatch bounce 7 "The second table is missing"
    """  # noqa: D301 - click's mark
    if "review" not in answers.extensions_of(state.client.send(protocol.health())):
        raise UsageError("The task service at this URL knows no review; use 'dispatch message' and 'dispatch reopen'.")
    _each(state, [task_id], "sent back", lambda one: protocol.bounce(one, note))


def _reopen_all(state: State, task_id: str, reason: str | None) -> dict[str, Any]:
    """Reopen a task with everything behind it, which takes several calls when it is very much."""
    done: list[Any] = []
    while True:
        answer: dict[str, Any] = state.client.send(protocol.reopen(task_id, reason, dependents=True), deadline_s=60.0)
        done += answer["reopened"]
        if not answer.get("more"):
            return {**answer, "reopened": sorted(done, key=lambda one: one["id"])}


def _tell_reopened(state: State, answer: Any) -> None:
    if state.output.is_json:
        return
    task = parse_task(answer)
    state.output.line(f"Task {task.id} is {task.status}.")
    for one in answer["reopened"]:
        state.output.line(f"Task {one['id']} reopened.")
    for ident in answer["kept"]:
        state.output.line(
            f"Task {ident} stays failed: something else that it depends on ended badly or does not exist."
        )
    if not answer["reopened"]:
        state.output.note("Nothing behind it was reopened.")


def _each(state: State, task_ids: Sequence[str], done: str, request: Callable[[str], protocol.Request]) -> None:
    """Make the call for each task; a refusal for one does not keep the others from being tried."""
    refusals = Refusals(task_ids)
    results = []
    for task_id in task_ids:
        try:
            answer = state.client.send(request(task_id))
        except GatewayRejectedError as exc:
            refusals.add(task_id, exc)
            continue
        results.append(_result(task_id, answer))
        if not state.output.is_json:
            state.output.line(f"Task {task_id} {done}.")
    if state.output.is_json and results:
        state.output.json(results[0] if len(task_ids) == 1 else results)
    refusals.raise_last()


def _result(task_id: str, answer: Any) -> Any:
    try:
        return parse_task(answer).raw
    except GatewayUnavailableError:
        # A plain service may answer anything to a move; that it was accepted is what counts.
        return {"id": task_id}
