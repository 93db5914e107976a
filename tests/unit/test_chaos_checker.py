"""The checker passes a right history and catches at least one planted violation of every invariant."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.checker import check
from tests.chaos.collect import with_victims
from tests.chaos.history import (
    Call,
    Creation,
    Event,
    Exit,
    Fault,
    FaultKind,
    FinalTask,
    History,
    Sighting,
    Tick,
    read_ticks,
)
from tests.chaos.verdict import Bounds, Report, Violation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TYPE_OF = {
    "task.created": (None, "todo"),
    "task.claimed": ("todo", "in_progress"),
    "task.started": ("in_progress", "in_progress"),
    "task.released": ("in_progress", "todo"),
    "task.lease_expired": ("in_progress", "todo"),
    "task.completed": ("in_progress", "completed"),
    "task.failed": ("in_progress", "failed"),
    "task.cancelled": ("in_progress", "cancelled"),
    "task.reopened": ("completed", "todo"),
}


def event(seq: int, task: str, kind: str, at: float, token: int | None = None, **more: Any) -> Event:
    """An event with the move that its type usually makes."""
    source, target = TYPE_OF["task." + kind]
    moves = {"from_status": source, "to_status": target, **more}
    runner = {"runner": "w1"} if kind == "started" else {}
    return Event(seq=seq, task_id=task, type="task." + kind, at=at, token=token, **{**runner, **moves})


def life(task: str, token: int, attempt: int, begin: float, end: float, pid: int, *, closed: bool = True) -> list[Tick]:
    """The ticks of one attempt."""
    return [
        Tick(task, token, attempt, begin, "begin", pid=pid),
        Tick(task, token, attempt, (begin + end) / 2, "tick", pid=pid),
        Tick(task, token, attempt, end, "end" if closed else "tick", pid=pid),
    ]


# Task 1 runs through. Task 2 loses its worker, is released and counted, and fails for good at its third attempt.
# Task 3 loses its lease with its frozen worker, completes, is reopened and completes again. Task 4 is cancelled.
# Task 5 was created without an answer and waits while Redis is away.
EVENTS = [
    event(1, "1", "created", 0.0),
    event(2, "2", "created", 0.1),
    event(3, "3", "created", 0.2),
    event(4, "4", "created", 0.3),
    event(5, "1", "claimed", 0.4, 1),
    event(6, "1", "started", 0.5, 1),
    event(7, "1", "completed", 1.5, 1),
    event(10, "2", "claimed", 0.4, 1),
    event(11, "2", "started", 0.5, 1),
    event(12, "2", "released", 1.2, 1, counted=True),
    event(13, "2", "claimed", 2.0, 2),
    event(14, "2", "started", 2.1, 2),
    event(15, "2", "released", 3.0, 2, counted=True),
    event(16, "2", "claimed", 3.1, 3),
    event(17, "2", "started", 3.2, 3),
    event(18, "2", "failed", 4.0, 3),
    event(20, "3", "claimed", 5.0, 1),
    event(21, "3", "started", 5.1, 1),
    event(22, "3", "lease_expired", 12.0, 1),
    event(23, "3", "claimed", 12.1, 2),
    event(24, "3", "started", 12.2, 2),
    event(25, "3", "completed", 13.2, 2),
    event(26, "3", "reopened", 14.0),
    event(27, "3", "claimed", 14.1, 3),
    event(28, "3", "started", 14.2, 3),
    event(29, "3", "completed", 15.2, 3),
    event(30, "4", "claimed", 16.0, 1),
    event(31, "4", "started", 16.1, 1),
    event(32, "4", "cancelled", 17.0),
    event(33, "5", "created", 18.0),
    event(34, "5", "claimed", 20.0, 1),
    event(35, "5", "started", 20.1, 1),
    event(36, "5", "completed", 21.2, 1),
]
TICKS = [
    *life("1", 1, 1, 0.6, 1.4, 101),
    *life("2", 1, 1, 0.6, 1.0, 102, closed=False),
    *life("2", 2, 2, 2.2, 2.9, 103),
    *life("2", 3, 3, 3.3, 3.9, 104),
    *life("3", 1, 1, 5.2, 9.5, 105, closed=False),
    *life("3", 2, 1, 12.3, 13.1, 106),
    *life("3", 3, 1, 14.3, 15.1, 107),
    *life("4", 1, 1, 16.2, 17.4, 108, closed=False),
    *life("5", 1, 1, 20.2, 21.1, 109),
]
RIGHT = History(
    events=tuple(EVENTS),
    tasks=(
        FinalTask("1", "one", "completed", token=1, attempts=1),
        FinalTask("2", "two", "failed", token=3, attempts=3),
        FinalTask("3", "three", "completed", token=3, attempts=1),
        FinalTask("4", "four", "cancelled", token=1, attempts=1),
        FinalTask("5", "five", "completed", token=1, attempts=1),
    ),
    creations=(
        Creation("one", "1", 0.0),
        Creation("two", "2", 0.1),
        Creation("three", "3", 0.2),
        Creation("four", "4", 0.3),
        Creation("five", None, 18.0),
        Creation("never arrived", None, 18.1),
    ),
    ticks=tuple(TICKS),
    calls=(
        Call("renew", "2", token=1, current_token=2, status=409),
        Call("complete", "3", token=1, current_token=2, status=409),
        Call("complete", "3", token=3, current_token=3, status=200, repeats=True),
    ),
    faults=(
        Fault(FaultKind.POOL_CHILD, 0.9, frozenset({("2", 1)})),
        Fault(FaultKind.WORKER_FROZEN, 6.0, frozenset({("3", 1)})),
        Fault(FaultKind.REDIS, 18.5),
    ),
    sightings=(Sighting("1", 1, 101, 1.0), Sighting("4", 1, 108, 17.3)),
    queue_depths={"dispatch": 0, "unacked": 0},
    ended_at=60.0,
)


def without_event(seq: int) -> History:
    """RIGHT without one event."""
    return replace(RIGHT, events=tuple(e for e in RIGHT.events if e.seq != seq))


def with_event(seq: int, **changes: Any) -> History:
    """RIGHT with one event changed."""
    return replace(RIGHT, events=tuple(replace(e, **changes) if e.seq == seq else e for e in RIGHT.events))


def plus(**more: Any) -> History:
    """RIGHT with something added to one of its parts."""
    return replace(RIGHT, **{name: (*getattr(RIGHT, name), extra) for name, extra in more.items()})


def with_task(ident: str, **changes: Any) -> History:
    """RIGHT with one final task changed."""
    return replace(RIGHT, tasks=tuple(replace(t, **changes) if t.id == ident else t for t in RIGHT.tasks))


def ticks_where(change: Callable[[Tick], Tick | None]) -> History:
    """RIGHT with its ticks mapped; None drops one."""
    return replace(RIGHT, ticks=tuple(new for t in RIGHT.ticks if (new := change(t)) is not None))


def shifted(task: str, token: int, seconds: float) -> History:
    """RIGHT with the ticks of one attempt moved in time."""
    return ticks_where(lambda t: replace(t, at=t.at + seconds) if (t.task_id, t.token) == (task, token) else t)


# invariant, what was planted, history, words that the verdict must contain
MUTANTS = [
    ("I1", "a task comes to rest unfinished", with_task("1", status="in_review"), "came to rest as in_review"),
    ("I1", "the shown status is not the last event's", with_task("1", status="failed"), "last event made it completed"),
    ("I2", "an acknowledged task is gone", replace(RIGHT, tasks=RIGHT.tasks[1:]), "was acknowledged and is lost"),
    ("I2", "a task nobody created", plus(tasks=FinalTask("9", "ghost", "failed")), "nobody created it"),
    ("I2", "a task is there twice", plus(tasks=FinalTask("9", "one", "failed")), "['1', '9']"),
    (
        "I3",
        "a completed task is cancelled",
        plus(events=event(90, "1", "cancelled", 30.0, from_status="completed")),
        "changed the final completed",
    ),
    ("I3", "a reopen is not recorded", without_event(26), "task.claimed (seq 27) left todo, but it was completed"),
    ("I4", "a token is skipped", with_event(13, token=3), "was granted token 3 after 1"),
    ("I4", "a token is granted twice", with_event(13, token=1), "was granted token 1 after 1"),
    ("I4", "the final token is not the last grant's", with_task("2", token=4), "ended with token 4 after 3 grants"),
    (
        "I4",
        "two runners start one token",
        plus(events=replace(EVENTS[5], seq=90, runner="w2")),
        "token 1 was started by ['w1', 'w2']",
    ),
    ("I5", "two attempts overlap", shifted("2", 3, -0.5), "tokens 2 and 3 were alive together for 0.100 s"),
    ("I5", "a frozen worker's child lives on", shifted("3", 1, 3.0), "tokens 1 and 2 were alive together"),
    (
        "I5",
        "a daemon of the first attempt lives on beside two others",
        plus(ticks=Tick("2", 1, 1, 3.5, role="daemon", pid=999)),
        "tokens 1 and 3 were alive together",
    ),
    (
        "I5",
        "one token is started twice",
        plus(ticks=Tick("1", 1, 1, 1.2, "begin", pid=999)),
        "token 1 lived in processes [101, 999]",
    ),
    ("I6", "a stale completion is recorded", with_event(25, token=1), "accepted with token 1, current was 2"),
    ("I6", "a stale release is recorded", with_event(15, token=1), "accepted with token 1, current was 2"),
    (
        "I6",
        "two completions of one grant",
        plus(events=event(90, "1", "completed", 1.6, 1, from_status="completed")),
        "task.completed was accepted after task.completed",
    ),
    ("I6", "a stale call is accepted", plus(calls=Call("complete", "2", 1, 3, 200)), "complete with token 1 got 200"),
    ("I6", "a repetition is refused", plus(calls=Call("fail", "2", 3, 3, 409, repeats=True)), "repeated fail got 409"),
    ("I9", "a shutdown is counted", with_event(15, counted=False), "shows 3 attempts, its events count [2]"),
    ("I9", "a lost lease is counted", with_task("3", attempts=2), "shows 2 attempts, its events count [1]"),
    (
        "I9",
        "a release that may count or not is told a third number",
        replace(with_event(15, counted=None), ticks=tuple(replace(t, attempt=3) for t in TICKS if t.task_id == "2")),
        "token 1 ran as attempt [3], it was number [1]",
    ),
    ("I9", "a start is not recorded", without_event(14), "token 2 ran without a recorded start"),
    (
        "I9",
        "the child is told another number",
        ticks_where(lambda t: replace(t, attempt=1) if (t.task_id, t.token) == ("2", 2) else t),
        "token 2 ran as attempt [1], it was number [2]",
    ),
    (
        "I9",
        "a task that succeeds is failed before its attempts are used up",
        replace(
            with_event(7, type="task.failed", to_status="failed"),
            creations=(Creation("one", "1", 0.0, ends="completed"), *RIGHT.creations[1:]),
            tasks=(replace(RIGHT.tasks[0], status="failed"), *RIGHT.tasks[1:]),
        ),
        "ended failed after 1 attempts, its child makes it end completed",
    ),
    (
        "I9",
        "one attempt too many runs",
        ticks_where(lambda t: replace(t, attempt=4) if (t.task_id, t.token) == ("2", 3) else t),
        "attempt 4 ran, the limit is 3",
    ),
    (
        "I10",
        "a victim runs again late",
        replace(RIGHT, faults=(Fault(FaultKind.POOL_CHILD, -9.0, frozenset({("2", 1)})), *RIGHT.faults[1:])),
        "ran again only 11.20 s after pool_child, bound 10 s",
    ),
    (
        "I10",
        "a victim never runs again",
        replace(
            RIGHT,
            events=tuple(e for e in RIGHT.events if e.task_id != "2" or e.seq <= 12),
            ticks=tuple(t for t in RIGHT.ticks if t.task_id != "2" or t.token == 1),
        ),
        "never ran again after pool_child",
    ),
    (
        "I10",
        "what waited for Redis starts late",
        replace(
            RIGHT,
            faults=(*RIGHT.faults[:2], Fault(FaultKind.REDIS, 14.5, back_at=15.0)),
            ticks=tuple(t for t in TICKS if t.task_id != "4"),
            events=tuple(replace(e, at=12.0) if e.seq == 33 else e for e in EVENTS if e.seq not in {30, 31}),
        ),
        "ran again only 5.20 s after redis, bound 5 s",
    ),
    (
        "I10",
        "what was queued when an ingress died starts late",
        replace(
            RIGHT,
            faults=(*RIGHT.faults[:2], Fault(FaultKind.INGRESS, 9.5, back_at=11.0)),
            events=tuple(replace(e, at=9.0) if e.seq in {33, 34} else e for e in EVENTS),
        ),
        "ran again only 10.70 s after ingress, bound 10 s",
    ),
    (
        "I10",
        "what was queued when an ingress died never runs",
        replace(
            RIGHT,
            faults=(*RIGHT.faults, Fault(FaultKind.INGRESS, 20.05)),
            events=tuple(e for e in EVENTS if e.seq < 35),
            ticks=tuple(t for t in TICKS if t.task_id != "5"),
        ),
        "never ran again after ingress",
    ),
    (
        "I10",
        "a process ends by itself",
        replace(RIGHT, exits=(Exit("worker-1", 1, 18.6),)),
        "worker-1 ended by itself with exit code 1",
    ),
    (
        "I10",
        "a process gives up though nothing is away",
        replace(RIGHT, exits=(Exit("worker-1", 69, 30.0),)),
        "worker-1 ended by itself with exit code 69",
    ),
    (
        "I10",
        "a service restart cuts an attempt short",
        ticks_where(lambda t: replace(t, kind="tick") if (t.task_id, t.token) == ("5", 1) and t.kind == "end" else t),
        "the attempt with token 1 was cut short",
    ),
    ("I11", "a child ticks on after its end", plus(ticks=Tick("1", 1, 1, 3.0, pid=101)), "alive 1.50 s after"),
    ("I11", "a process is seen after its end", plus(sightings=Sighting("1", 1, 77, 2.6)), "alive 1.10 s after"),
    ("I11", "a cancelled tree lives on", plus(sightings=Sighting("4", 1, 108, 18.6)), "after its task.cancelled"),
    (
        "I11",
        "a child outlives its killed worker",
        plus(sightings=Sighting("2", 1, 102, 1.95)),
        "alive 1.05 s after pool_child died",
    ),
    ("I13", "a queue is not empty", replace(RIGHT, queue_depths={"dispatch": 2}), "queue dispatch still holds 2"),
    ("I13", "a task is still pending", with_task("1", status="todo"), "is still pending"),
    (
        "I13",
        "an expired lease is never taken back",
        with_task("1", status="in_progress", lease_expires_at=50.0),
        "holds a lease that expired long ago",
    ),
]


def test_a_right_history_is_valid() -> None:
    """No violation in a history with a kill, a frozen worker, a reopen, a cancel and a lost answer."""
    report = check(RIGHT)
    assert report.violations == ()
    assert report.ok
    assert report.counts == {
        "tried": 6,
        "acknowledged": 4,
        "lost": 0,
        "unexpected": 0,
        "duplicated": 0,
        "recovered": 1,
        "attempts": 9,
        "stale calls": 2,
        "repeats": 1,
        "faults": 3,
    }
    assert [(r.kind.value, round(r.took_s, 2)) for r in report.recoveries] == [
        ("pool_child", 1.3),
        ("worker_frozen", 6.3),
        ("redis", 1.7),
    ]


@pytest.mark.parametrize(
    ("invariant", "history", "words"),
    [pytest.param(invariant, history, words, id=f"{invariant} {name}") for invariant, name, history, words in MUTANTS],
)
def test_a_planted_violation_is_caught(invariant: str, history: History, words: str) -> None:
    """Each mutant is named by the number of its invariant and in words."""
    report = check(history)
    found = [v for v in report.violations if v.invariant == invariant and words in v.sentence]
    assert found, report.text()
    assert not report.ok
    assert words in report.text()


def test_every_invariant_has_a_mutant() -> None:
    """The list of mutants covers all invariants that the checker promises."""
    promised = ["I1", "I2", "I3", "I4", "I5", "I6", "I9", "I10", "I11", "I13"]
    assert set(promised) == {invariant for invariant, *_ in MUTANTS}


def test_faults_that_follow_add_their_time() -> None:
    """A fault that hits before the first is overcome adds its own time, one that hits later does not."""
    tight = Bounds(recovery_s={**Bounds().recovery_s, FaultKind.POOL_CHILD: 1.0})
    assert [v.invariant for v in check(RIGHT, tight).violations] == ["I10"]
    assert not check(plus(faults=Fault(FaultKind.SERVICE, 1.1)), tight).violations
    assert check(plus(faults=Fault(FaultKind.SERVICE, 2.5)), tight).violations


@pytest.mark.parametrize("counted", [True, None])
def test_a_release_that_the_log_does_not_explain(counted: bool | None) -> None:
    """Where the log does not say whether a release counted, the child's own number decides."""
    assert not check(with_event(15, counted=counted)).violations


def test_the_text_is_for_people() -> None:
    """Counts, recovery times with their bounds, the violations, and the verdict in the last line."""
    text = check(RIGHT).text()
    assert text.splitlines()[0] == (
        "tried 6  acknowledged 4  lost 0  unexpected 0  duplicated 0  recovered 1  "
        "attempts 9  stale calls 2  repeats 1  faults 3"
    )
    assert "recovery after pool_child: 1 times, median 1.30 s, at worst 1.30 s of 10 s" in text
    assert text.endswith("\nvalid")
    wrong = Report({}, (), (Violation("I5", "7", "was alive twice"),)).text()
    assert wrong.endswith("I5  task 7: was alive twice\nINVALID: 1 violations")


def test_ticks_are_read_as_written(tmp_path: Path) -> None:
    """A tick file becomes ticks on the wall clock; a broken line is no history."""
    (tmp_path / "7.ticks").write_text(
        '{"task": "7", "token": 3, "attempt": 1, "at": 5.5, "kind": "begin", "role": "leader", "pid": 42}\n'
    )
    assert list(read_ticks(tmp_path, 1000.0)) == [Tick("7", 3, 1, 1005.5, "begin", "leader", 42)]
    (tmp_path / "7.ticks").write_text('{"task": "7"')
    with pytest.raises(ValueError, match="delimiter"):
        list(read_ticks(tmp_path, 0.0))


def test_victims_are_the_attempts_that_had_not_ended() -> None:
    """An attempt is a victim if it was started by a pool child that died and the service had no end of it before."""
    events = [
        event(1, "1", "claimed", 0.1, 1),
        event(2, "1", "started", 0.2, 1, runner="host/7/aa"),
        event(3, "1", "completed", 0.9, 1),
        event(4, "2", "claimed", 1.0, 1),
        event(5, "2", "started", 1.1, 1, runner="host/7/bb"),
        event(6, "2", "released", 2.1, 1),
        event(7, "3", "claimed", 1.0, 1),
        event(8, "3", "started", 1.1, 1, runner="host/8/cc"),
    ]
    (fault,) = with_victims([Fault(FaultKind.POOL_CHILD, 2.0, pids=frozenset({7}))], events)
    assert fault.victims == {("2", 1)}
