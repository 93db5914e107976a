"""What is stuck, and why: the oldest tasks that do not run, by reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.cli.advice import for_people, named
from dispatch.cli.fleet_view import way_of
from dispatch.cli.sealed_needs import states_of, with_inner_needs
from dispatch.core.lifecycle import ATS_WORD, STATUS_OF_ATS_WORD, Status
from dispatch.core.standing import WAITS_ITS_TURN, fleet_troubles, merged
from dispatch.core.waiting import Facts, Needed, Reason, reasons
from dispatch.errors import GatewayError, GatewayRejectedError, UnknownTaskError

if TYPE_CHECKING:
    from dispatch.ats.model import Task
    from dispatch.cli.fleet_view import Seen
    from dispatch.cli.options import State

LOOKED_AT: Final = {Status.TODO: 12, Status.IN_REVIEW: 4, Status.BLOCKED: 4}
"""How many of the oldest tasks in each state are asked for their reason."""
_NEEDED_MAX: Final = 32
"""How many dependencies are read one by one from a service without the Task Tools."""


@dataclass(slots=True)
class Stuck:
    """One reason, and the tasks that it holds up, as far as they were looked at."""

    code: str
    text: str
    next: str
    tasks: list[str] = field(default_factory=list)


def told_by_service(state: State, task: Task) -> dict[str, Any]:
    """Return why a task is not running as ``explain`` tells it; from what can be seen where there are no Task Tools."""
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


def explained(state: State, seen: Seen, task: Task) -> dict[str, Any]:
    """Return why a task is not running: what the service tells, and what only the fleet shows.

    ``next`` has ID in it where the task's id belongs.
    """
    found = told_by_service(state, task)
    told = [Reason(one["code"], one["text"], one["next"]) for one in found["reasons"]]
    inside = _inside(state, seen, task)
    whole = merged(told, seen.fleet, way_of(state.settings, task), seen.now, inside=inside)
    if not whole:
        return found
    people = [for_people(one) for one in whole]
    shown = [{"code": one.code, "text": one.text, "next": one.advice} for one in people]
    return {**found, "summary": " ".join(one.text for one in people), "reasons": shown}


def _inside(state: State, seen: Seen, task: Task) -> list[Reason] | None:
    """Return why a sealed task waits, as the fleet knows it; None where there is no fleet to ask, or nothing to ask."""
    if not task.sealed or task.status != "pending" or not seen.fleet.ingresses:
        return None
    found = with_inner_needs(state, [task])
    if found is None:
        return None
    states = states_of(state, found[0].depends_on)
    open_ones = {name: status for name, status in states.items() if status not in (None, "completed")}
    facts = Facts(
        status=Status.TODO,
        waits_for=[
            Needed(f"#{name}", STATUS_OF_ATS_WORD.get(word or "", Status.TODO)) for name, word in open_ones.items()
        ],
        missing=[f"#{name}" for name, status in states.items() if status is None],
    )
    return reasons(facts) if facts.waits_for or facts.missing else []


def look_for_stuck(state: State, seen: Seen) -> list[Stuck]:
    """Return what is wrong with the fleet, then what holds up the oldest tasks that do not run."""
    found: dict[tuple[str, str], Stuck] = {}
    for reason in fleet_troubles(seen.fleet, [state.settings.broker.queue]):
        _add(found, reason)
    if not seen.fleet.service_error:
        try:
            for task in _oldest(state, seen.extensions):
                _explain_into(found, state, seen, task)
        except GatewayError as exc:
            _add(found, Reason("SERVICE_DOWN", f"The task service stopped answering: {exc}", "Look again."))
    for one in found.values():
        if len(one.tasks) == 1:
            one.next = named(one.next, one.tasks[0])
    return list(found.values())


def _oldest(state: State, extensions: frozenset[str]) -> list[Task]:
    rows: list[Task] = []
    for status, limit in LOOKED_AT.items():
        if status is not Status.TODO and "tools" not in extensions:
            continue  # a plain service knows no such state
        request = protocol.list_tasks(
            status=ATS_WORD[status], channel=state.channels, sort_by="created_at", sort_dir="asc", limit=limit
        )
        rows += answers.tasks_of(state.client.send(request))
    return rows


def _explain_into(found: dict[tuple[str, str], Stuck], state: State, seen: Seen, task: Task) -> None:
    try:
        told = explained(state, seen, task)
    except UnknownTaskError:
        return
    first = next(iter(told["reasons"]), None)
    if first is not None and first["code"] not in WAITS_ITS_TURN:
        _add(found, Reason(first["code"], first["text"], first["next"]), task.id)


def _add(found: dict[tuple[str, str], Stuck], reason: Reason, task_id: str | None = None) -> None:
    one = found.setdefault((reason.code, reason.text), Stuck(reason.code, reason.text, reason.advice))
    if task_id is not None:
        one.tasks.append(task_id)


def shown(stuck: list[Stuck]) -> list[dict[str, Any]]:
    """Return them as JSON shows them."""
    return [asdict(one) for one in stuck]
