"""What is stuck, and what only waits: the oldest tasks that do not run, by reason."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.cli.advice import for_people, named
from dispatch.cli.fleet_view import is_orphaned, way_of
from dispatch.cli.sealed_needs import states_of, with_inner_needs
from dispatch.core.lifecycle import ATS_WORD, STATUS_OF_ATS_WORD, Status
from dispatch.core.standing import Stand, fleet_troubles, merged, stand_of, waits_for_others
from dispatch.core.waiting import Facts, Needed, Reason, reasons
from dispatch.errors import GatewayError, GatewayRejectedError, UnknownTaskError

if TYPE_CHECKING:
    from dispatch.ats.model import Task
    from dispatch.cli.fleet_view import Seen
    from dispatch.cli.options import State

LOOKED_AT: Final = {Status.TODO: 12, Status.IN_REVIEW: 4, Status.BLOCKED: 4}
"""How many of the oldest tasks in each state are asked for their reason, not counting those that only wait."""
ORPHANED_MAX: Final = 4
"""How many tasks in progress that nobody holds are asked."""
LISTED_MAX: Final = 30
"""How many pending tasks are listed for that."""
ASKED_MAX: Final = 60
"""How many tasks are asked at most, with those that others wait for."""
_PAUSE: Final = re.compile(r"another \d+ s")
_NEEDED_MAX: Final = 32
"""How many dependencies are read one by one from a service without the Task Tools."""


@dataclass(slots=True)
class Stuck:
    """One reason, and the tasks that it holds up, as far as they were looked at."""

    code: str
    text: str
    next: str
    tasks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HeldUp:
    """What holds tasks up: ``stuck`` needs somebody, ``waiting`` only tasks that run or will."""

    stuck: list[Stuck]
    waiting: list[Stuck]


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


def look_for_stuck(state: State, seen: Seen) -> HeldUp:
    """Return what is wrong with the fleet, then what holds up the oldest tasks that do not run."""
    look = _Look(state, seen)
    for reason in fleet_troubles(seen.fleet, [state.settings.broker.queue]):
        look.add(Stand.STUCK, reason)
    if not seen.fleet.service_error:
        try:
            look.at_oldest()
        except GatewayError as exc:
            look.add(Stand.STUCK, Reason("SERVICE_DOWN", f"The task service stopped answering: {exc}", "Look again."))
    return look.found()


def alike(reason: Reason) -> tuple[str, str]:
    """Return what reasons have in common that are told once: of pauses, all but how long each still lasts."""
    return reason.code, _PAUSE.sub("", reason.text) if reason.code == "BACKING_OFF" else reason.text


class _Look:
    """One look at the oldest tasks, and at what they wait for; each task is asked for its reasons once."""

    def __init__(self, state: State, seen: Seen) -> None:
        self._state = state
        self._seen = seen
        self._runs = {task.id for task in seen.running if task.runner}
        self._told: dict[str, list[Reason]] = {}
        self._stands: dict[str, Stand] = {}
        self._held: dict[Stand, dict[tuple[str, str], Stuck]] = {Stand.STUCK: {}, Stand.WAITS: {}}

    def at_oldest(self) -> None:
        """Look at the oldest tasks of each state. Raises the GatewayError family."""
        for status, most in LOOKED_AT.items():
            if status is not Status.TODO and "tools" not in self._seen.extensions:
                continue  # a plain service knows no such state
            left = most
            for task in self._oldest(status):
                if left == 0:
                    break
                stand = self._stand(task)
                # One that only waits does not keep the next from being looked at.
                left -= stand is not Stand.WAITS
                first = next(iter(self._told[task.id]), None)
                if first is not None and stand is not Stand.MOVES:
                    self.add(stand, first, task.id)
        for task in [task for task in self._seen.running if is_orphaned(task)][:ORPHANED_MAX]:
            for reason in self._reasons(task)[:1]:
                self.add(Stand.STUCK, reason, task.id)

    def _oldest(self, status: Status) -> list[Task]:
        request = protocol.list_tasks(
            status=ATS_WORD[status],
            channel=self._state.channels,
            sort_by="created_at",
            sort_dir="asc",
            limit=LISTED_MAX if status is Status.TODO else LOOKED_AT[status],
        )
        return answers.tasks_of(self._state.client.send(request))

    def _stand(self, task: Task) -> Stand:
        if task.id not in self._stands:
            self._stands[task.id] = Stand.WAITS  # for whoever comes here again from what it waits for
            self._told[task.id] = told = self._reasons(task)
            needed = self._needed(task) if waits_for_others(told) else ()
            self._stands[task.id] = stand_of(told, [self._stand_of(name) for name in needed])
        return self._stands[task.id]

    def _stand_of(self, name: str) -> Stand:
        if name in self._runs:
            return Stand.MOVES
        if name in self._stands:
            return self._stands[name]
        if len(self._stands) >= ASKED_MAX:
            return Stand.WAITS  # what is wrong with it, if anything, is told of itself
        try:
            task = parse_task(self._state.client.send(protocol.get(name)))
        except UnknownTaskError:
            return Stand.MOVES  # removed just now: one that was never there is another reason
        if task.status == ATS_WORD[Status.COMPLETED]:
            return Stand.MOVES
        return self._stand(task)

    def _reasons(self, task: Task) -> list[Reason]:
        try:
            told = explained(self._state, self._seen, task)
        except UnknownTaskError:
            return []
        return [Reason(one["code"], one["text"], one["next"]) for one in told["reasons"]]

    def _needed(self, task: Task) -> tuple[str, ...]:
        found = with_inner_needs(self._state, [task])
        return task.depends_on if found is None else found[0].depends_on

    def add(self, stand: Stand, reason: Reason, task_id: str | None = None) -> None:
        """Keep a reason, and whom it holds up."""
        held = self._held[stand]
        one = held.setdefault(alike(reason), Stuck(reason.code, reason.text, reason.advice))
        if task_id is not None:
            one.tasks.append(task_id)

    def found(self) -> HeldUp:
        """Return all that was kept."""
        for held in self._held.values():
            for one in held.values():
                if len(one.tasks) == 1:
                    one.next = named(one.next, one.tasks[0])
        return HeldUp(list(self._held[Stand.STUCK].values()), list(self._held[Stand.WAITS].values()))


def shown(stuck: list[Stuck]) -> list[dict[str, Any]]:
    """Return them as JSON shows them."""
    return [asdict(one) for one in stuck]
