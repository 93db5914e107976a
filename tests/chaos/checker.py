"""Does a history keep the promises? Pure: values in, a report out.

The invariants carry the numbers that the output shows:

====  ==========================================================================
I1    an acknowledged task ends in exactly one terminal state
I2    no acknowledged task is missing, none exists that nobody created
I3    a terminal state changes only by an explicit reopen
I4    the fencing token grows by one per grant, and a token starts at one runner
I5    at most one attempt of a task is alive at any time, by the children's word
I6    one accepted end per grant, of the current token; stale calls get 409
I9    attempts counted are attempts started; never more than the limit
I10   a task hit by a fault runs again in time; other faults disturb nothing
I11   no process outlives the end of its attempt by more than a second
I13   at rest nothing waits: queues empty, no task pending, no lease expired
I14   nothing lives before what it depends on is completed (``graphs``)
====  ==========================================================================

The history must have been taken after all faults were healed and everything
came to rest, or the time for that had run out.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tests.chaos.graphs import check_graph
from tests.chaos.history import Creation, Event, Fault, FaultKind, FinalTask, History, Tick, end_of_grant
from tests.chaos.verdict import Bounds, Recovery, Report, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

TERMINAL = frozenset({"completed", "failed", "cancelled", "skipped"})
FENCED = frozenset({"task.started", "task.completed", "task.failed", "task.released"})
HOST_LOST = frozenset({FaultKind.HOST_CUT_OFF, FaultKind.HOST_FROZEN, FaultKind.HOST_KILLED})
KILLS_ATTEMPTS = HOST_LOST | {
    FaultKind.POOL_CHILD,
    FaultKind.WORKER,
    FaultKind.WORKER_FROZEN,
    FaultKind.WORKER_DRAIN,
}
"""Faults whose victims must run again; all others must disturb no running attempt."""
NEEDED_TO_START = frozenset({FaultKind.REDIS, FaultKind.SERVICE})
GAVE_UP = frozenset({69, 75, 78})
"""Exit codes of a process whose preflight failed."""
MAY_LEAVE_POPPED = HOST_LOST | {
    FaultKind.WORKER,
    FaultKind.WORKER_FROZEN,
    FaultKind.REDIS,
    FaultKind.REDIS_EMPTIED,
}
SLOTS_MAX = 4
"""How many messages one such fault may leave: one for each slot of the fleet."""
CONNECTS_AGAIN_S = 5.0
"""How long after the return of service, ingress or Redis its clients may be without a connection."""


class _Index:
    """The history by task and by attempt."""

    def __init__(self, history: History, bounds: Bounds) -> None:
        self.history = history
        self.bounds = bounds
        self.events: dict[str, list[Event]] = defaultdict(list)
        for event in sorted(history.events, key=lambda e: e.seq):
            self.events[event.task_id].append(event)
        self.ticks: dict[tuple[str, int], list[Tick]] = defaultdict(list)
        for tick in sorted(history.ticks, key=lambda t: t.at):
            self.ticks[tick.task_id, tick.token].append(tick)
        self.creations: dict[str, Creation] = {creation.title: creation for creation in history.creations}
        self.tokens: dict[str, list[int]] = defaultdict(list)
        for task_id, token in sorted(self.ticks):
            self.tokens[task_id].append(token)

    def end_of(self, task_id: str, token: int) -> Event | None:
        """Return the event that ended a grant, if any."""
        return end_of_grant(self.events[task_id], token)

    def since(self, fault: Fault) -> float:
        """Return from when the time to recover counts."""
        return fault.up_at if fault.kind in self.bounds.from_up else fault.at

    def deadline(self, fault: Fault, overcome_at: float) -> float:
        """Return until when a fault must be overcome; faults that hit before it is overcome add their own time."""
        deadline = self.since(fault) + self.bounds.recovery_s[fault.kind]
        for other in sorted(self.history.faults, key=lambda f: f.at):
            if other is not fault and fault.at <= other.up_at and other.at <= min(deadline, overcome_at):
                deadline += self.bounds.recovery_s[other.kind] + self.since(other) - other.at
        return deadline


def check(history: History, bounds: Bounds | None = None) -> Report:
    """Check all invariants."""
    index = _Index(history, bounds or Bounds())
    counts, violations = _accounts(history)
    recoveries: list[Recovery] = []
    for task in history.tasks:
        violations += _terminal(task, index.events[task.id])
        violations += _grants(task, index.events[task.id])
        violations += _starts(task, index.events[task.id])
        violations += _alone(task.id, index)
        violations += _attempts(task, index)
        violations += _limit(task.id, index)
        violations += _as_meant(task, index)
    violations += _stale_calls(history)
    violations += _recovered(index, recoveries)
    violations += _undisturbed(index)
    violations += _ended_by_themselves(history, index.bounds)
    violations += _outlived(index)
    violations += _at_rest(history, index.bounds)
    violations += check_graph(history)
    counts["attempts"] = len(index.ticks)
    counts["stale calls"] = sum(call.token < call.current_token for call in history.calls)
    counts["repeats"] = sum(call.repeats for call in history.calls)
    counts["faults"] = len(history.faults)
    return Report(counts, tuple(recoveries), tuple(sorted(set(violations))))


def _accounts(history: History) -> tuple[dict[str, int], list[Violation]]:
    """I2, in the words of Jepsen's total-queue: what went in, what came out."""
    tried = {creation.title: creation for creation in history.creations}
    acknowledged = {c.task_id: c for c in history.creations if c.task_id is not None}
    present: dict[str, list[str]] = defaultdict(list)
    for task in history.tasks:
        present[task.title].append(task.id)
    ids = {task.id for task in history.tasks}
    lost = sorted(set(acknowledged) - ids)
    unexpected = [task for task in history.tasks if task.title not in tried]
    duplicated = {title: found for title, found in present.items() if title in tried and len(found) > 1}
    recovered = [c for c in history.creations if c.task_id is None and c.title in present]
    violations = [Violation("I2", task_id, "was acknowledged and is lost") for task_id in lost]
    violations += [Violation("I2", task.id, "exists, and nobody created it") for task in unexpected]
    violations += [
        Violation("I2", found[0], f"was created once and is there as {found}") for found in duplicated.values()
    ]
    counts = {
        "tried": len(tried),
        "acknowledged": len(acknowledged),
        "lost": len(lost),
        "unexpected": len(unexpected),
        "duplicated": len(duplicated),
        "recovered": len(recovered),
    }
    return counts, violations


def _terminal(task: FinalTask, events: list[Event]) -> Iterator[Violation]:
    """I1 and I3: one terminal state, left only by a reopen, and an unbroken chain of moves."""
    if task.status not in TERMINAL:
        yield Violation("I1", task.id, f"came to rest as {task.status}")
    status = None
    for event in events:
        if event.to_status is None:
            continue
        if status is not None and event.from_status != status:
            yield Violation(
                "I3", task.id, f"{event.type} (seq {event.seq}) left {event.from_status}, but it was {status}"
            )
        moved = event.from_status != event.to_status
        if event.from_status in TERMINAL and moved and event.type != "task.reopened":
            yield Violation("I3", task.id, f"{event.type} (seq {event.seq}) changed the final {event.from_status}")
        status = event.to_status
    if status is not None and status != task.status:
        yield Violation("I1", task.id, f"is {task.status}, but its last event made it {status}")


def _grants(task: FinalTask, events: list[Event]) -> Iterator[Violation]:
    """I4 and I6: tokens count the grants; what is accepted carries the current one, and ends it once."""
    current = 0
    ended_by: Event | None = None
    for event in events:
        if event.type == "task.claimed":
            if event.token != current + 1:
                yield Violation("I4", task.id, f"was granted token {event.token} after {current}")
            current, ended_by = event.token or current, None
        elif event.type in FENCED and event.token not in (None, current):
            yield Violation("I6", task.id, f"{event.type} was accepted with token {event.token}, current was {current}")
        if event.type in ("task.completed", "task.failed"):
            if ended_by is not None:
                yield Violation("I6", task.id, f"{event.type} was accepted after {ended_by.type} of the same grant")
            ended_by = event
    if task.token != current:
        yield Violation("I4", task.id, f"ended with token {task.token} after {current} grants")


def _starts(task: FinalTask, events: list[Event]) -> Iterator[Violation]:
    """I4: a token starts at one runner."""
    runners: dict[int | None, set[str]] = defaultdict(set)
    for event in events:
        if event.type == "task.started":
            runners[event.token].add(event.runner)
    for token, names in runners.items():
        if len(names) > 1:
            yield Violation("I4", task.id, f"token {token} was started by {sorted(names)}")


def _stale_calls(history: History) -> Iterator[Violation]:
    """I6, seen from outside: a stale call is refused, a repeated one answered as the first time."""
    for call in history.calls:
        if call.token < call.current_token and call.status != 409:
            sentence = f"{call.verb} with token {call.token} got {call.status}, current was {call.current_token}"
            yield Violation("I6", call.task_id, sentence)
        if call.repeats and call.token == call.current_token and call.status != 200:
            yield Violation("I6", call.task_id, f"the repeated {call.verb} got {call.status}")


def _alone(task_id: str, index: _Index) -> Iterator[Violation]:
    """I5: the lives of two attempts do not overlap, and a token comes to life once."""
    lives = []
    for token in index.tokens[task_id]:
        ticks = index.ticks[task_id, token]
        lives.append((ticks[0].at, ticks[-1].at, token))
        pids = {tick.pid for tick in ticks if tick.role == "leader"}
        if len(pids) > 1:
            yield Violation("I5", task_id, f"token {token} lived in processes {sorted(pids)}")
    lives.sort()
    latest = lives[:1]
    for begin, end, token in lives[1:]:
        _, until, other = latest[0]
        if begin <= until:
            sentence = f"tokens {other} and {token} were alive together for {min(until, end) - begin:.3f} s"
            yield Violation("I5", task_id, sentence)
        latest = [max(latest[0], (begin, end, token), key=lambda life: life[1])]


def _attempts(task: FinalTask, index: _Index) -> Iterator[Violation]:
    """I9: replay what should be counted, and compare with the children's word and the final count.

    Where the log does not say whether a release counted, both numbers are possible until a child tells its own.
    """
    possible, started = {0}, False
    recorded: set[int | None] = set()
    for event in index.events[task.id]:
        match event.type:
            case "task.claimed":
                started = False
            case "task.started" if not started:
                possible, started = {number + 1 for number in possible}, True
                recorded.add(event.token)
                told = {tick.attempt for tick in index.ticks.get((task.id, event.token or 0), ())}
                if told - possible:
                    sentence = f"token {event.token} ran as attempt {sorted(told)}, it was number {sorted(possible)}"
                    yield Violation("I9", task.id, sentence)
                possible = told & possible or possible
            case "task.released" | "task.lease_expired" if started:
                possible, started = _after_return(event, possible), False
            case "task.reopened":
                possible, started = {0}, False
    for token in set(index.tokens[task.id]) - recorded:
        yield Violation("I9", task.id, f"token {token} ran without a recorded start")
    if task.attempts not in possible:
        yield Violation("I9", task.id, f"shows {task.attempts} attempts, its events count {sorted(possible)}")


def _limit(task_id: str, index: _Index) -> Iterator[Violation]:
    """I9: no attempt beyond the last."""
    limit = index.bounds.max_attempts
    for attempt in sorted({index.ticks[task_id, token][0].attempt for token in index.tokens[task_id]}):
        if attempt > limit:
            yield Violation("I9", task_id, f"attempt {attempt} ran, the limit is {limit}")


def _as_meant(task: FinalTask, index: _Index) -> Iterator[Violation]:
    """I9: a task ends as its child makes it end, or failed after as many attempts as there may be, never sooner."""
    creation = index.creations.get(task.title)
    if creation is None or not creation.ends or task.status not in TERMINAL or task.status == creation.ends:
        return
    bounds = index.bounds
    exhausted = task.attempts >= bounds.max_attempts or task.lease_losses >= bounds.max_lease_losses
    if task.status != "failed" or not exhausted:
        sentence = f"ended {task.status} after {task.attempts} attempts, its child makes it end {creation.ends}"
        yield Violation("I9", task.id, sentence)


def _after_return(event: Event, possible: set[int]) -> set[int]:
    """Return the possible counts after a started attempt was given back or its lease ran out."""
    uncounted = {number - 1 for number in possible}
    if event.type == "task.lease_expired" or event.counted is False:
        return uncounted
    return possible if event.counted else possible | uncounted


def _recovered(index: _Index, recoveries: list[Recovery]) -> Iterator[Violation]:
    """I10: what a fault hit runs again, or is settled, in time; after other faults what waits starts in time."""
    for fault in index.history.faults:
        hit = dict(fault.victims) if fault.kind in KILLS_ATTEMPTS else dict(_in_flight(index, fault))
        overcome = {task_id: _begins_or_ends(index, task_id, token, fault.at) for task_id, token in hit.items()}
        if fault.kind not in KILLS_ATTEMPTS:
            overcome |= _next_pickup(index, fault)
        for task_id, again in sorted(overcome.items()):
            if not again:
                yield Violation("I10", task_id, f"never ran again after {fault.kind}")
                continue
            since = index.since(fault)
            took_s, bound_s = max(0.0, min(again) - since), index.deadline(fault, min(again)) - since
            recoveries.append(Recovery(fault.kind, took_s, bound_s))
            if took_s > bound_s:
                sentence = f"ran again only {took_s:.2f} s after {fault.kind}, bound {bound_s:g} s"
                yield Violation("I10", task_id, sentence)


def _begins_or_ends(index: _Index, task_id: str, token: int, after: float) -> list[float]:
    """Return when later attempts of a task began, and when it was settled for good."""
    begins = [index.ticks[task_id, new][0].at for new in index.tokens[task_id] if new > token]
    return begins + [e.at for e in index.events[task_id] if e.at >= after and e.to_status in TERMINAL]


def _in_flight(index: _Index, fault: Fault) -> Iterator[tuple[str, int]]:
    """Yield (task id, last token that had a life) of what was claimed at the time of a fault and not yet begun."""
    for task_id, events in index.events.items():
        before = [event for event in events if event.at < fault.at]
        grants = [event.token or 0 for event in before if event.type == "task.claimed"]
        if not grants or before[-1].type != "task.claimed":
            continue
        yield task_id, grants[-1] - 1


def _next_pickup(index: _Index, fault: Fault) -> dict[str, list[float]]:
    """Return the task that was claimed and begun first of those that had waited unclaimed during a fault, if any."""
    picked = []
    for task_id, events in index.events.items():
        if not events or events[0].at >= fault.up_at or events[-1].at <= fault.at:
            continue
        grants = [e for e in events if e.type == "task.claimed" and e.at > fault.at]
        begun = [index.ticks[task_id, e.token or 0][0].at for e in grants if (task_id, e.token) in index.ticks]
        if begun and grants[0].at == min(e.at for e in events if e.type == "task.claimed"):
            picked.append((min(begun), task_id))
    return {task_id: [at] for at, task_id in sorted(picked)[:1]}


def _undisturbed(index: _Index) -> Iterator[Violation]:
    """I10: losing the ingress, Redis or the service ends no running attempt."""
    excused = {victim for fault in index.history.faults for victim in fault.victims}
    by_design = {creation.task_id for creation in index.history.creations if creation.cut_short}
    for (task_id, token), ticks in index.ticks.items():
        if (task_id, token) in excused or task_id in by_design:
            continue
        if any(tick.kind == "end" and tick.role == "leader" for tick in ticks):
            continue
        end = index.end_of(task_id, token)
        if end is not None and end.type == "task.cancelled":
            continue
        near = [f.kind for f in index.history.faults if ticks[0].at <= f.at and f.kind not in KILLS_ATTEMPTS]
        cause = f"{near[-1]} had failed" if near else "no fault had hit it"
        yield Violation("I10", task_id, f"the attempt with token {token} was cut short, and {cause}")


def _ended_by_themselves(history: History, bounds: Bounds) -> Iterator[Violation]:
    """I10: no process ends because another did; one that starts while what it needs is away may give up."""
    for ended in history.exits:
        needed = [f for f in history.faults if f.kind in NEEDED_TO_START]
        away = [f for f in needed if f.at <= ended.at <= f.up_at + bounds.give_up_s]
        if not (ended.code in GAVE_UP and away):
            yield Violation("I10", "-", f"{ended.name} ended by itself with exit code {ended.code}")


def _outlived(index: _Index) -> Iterator[Violation]:
    """I11: ticks and sightings end within a second after the attempt's end, or after its holder was killed."""
    seen: dict[tuple[str, int], float] = {key: ticks[-1].at for key, ticks in index.ticks.items()}
    for sighting in index.history.sightings:
        key = (sighting.task_id, sighting.token)
        seen[key] = max(seen.get(key, sighting.at), sighting.at)
    killed = {
        victim: fault
        for fault in index.history.faults
        for victim in fault.victims
        if fault.kind in (FaultKind.POOL_CHILD, FaultKind.WORKER, FaultKind.HOST_KILLED)
    }
    for (task_id, token), last in sorted(seen.items()):
        end = index.end_of(task_id, token)
        if end is not None and last > end.at + _may_outlive_s(index, end):
            yield Violation("I11", task_id, f"token {token} was alive {last - end.at:.2f} s after its {end.type}")
        fault = killed.get((task_id, token))
        if fault is not None and last > fault.at + index.bounds.tree_dead_s:
            yield Violation("I11", task_id, f"token {token} was alive {last - fault.at:.2f} s after {fault.kind} died")


def _may_outlive_s(index: _Index, end: Event) -> float:
    """Return how long a tree may live after its attempt's end.

    A cancel reaches its worker by the feed, an ingress and Redis; where one of
    them was hit, the worker hears it with its next renewal.
    """
    bounds = index.bounds
    if end.type != "task.cancelled":
        return bounds.tree_dead_s
    may_s = bounds.tree_dead_s + bounds.grace_s
    late_s = [
        max(0.0, fault.up_at - end.at) + bounds.renew_s
        for fault in index.history.faults
        if fault.kind not in KILLS_ATTEMPTS and fault.at - may_s < end.at < fault.up_at + CONNECTS_AGAIN_S
    ]
    return may_s + max(late_s, default=0.0)


def _at_rest(history: History, bounds: Bounds) -> Iterator[Violation]:
    """I13: nothing is left that somebody would have to do."""
    # What a killed worker, or one that lost Redis, had popped stays there until Celery restores it after minutes.
    left_behind = sum(fault.kind in MAY_LEAVE_POPPED for fault in history.faults)
    for name, depth in history.queue_depths.items():
        if depth > (left_behind * SLOTS_MAX if name == "unacked" else 0):
            yield Violation("I13", "-", f"queue {name} still holds {depth} messages")
    for task in history.tasks:
        if task.status == "todo":
            yield Violation("I13", task.id, "is still pending")
        expired = task.lease_expires_at is not None and task.lease_expires_at + bounds.settle_s < history.ended_at
        if task.status == "in_progress" and expired:
            yield Violation("I13", task.id, "holds a lease that expired long ago")
