"""Three worker hosts under load: one is cut off, one loses its power, one is frozen; then all come back.

What is asked of every task is what tests/chaos/checker.py asks. On top of that
come the promises that only whole hosts can put to the test, see ``HostsReport``.

Some of the tasks are *holds*: on a host without a release file their first
attempt runs for longer than everything here takes. So a host that is hit has
work, and a child that is not killed betrays itself by its ticks.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos import collect
from tests.chaos.checker import TERMINAL, check
from tests.chaos.history import Creation, Exit, Fault, FaultKind, History, Tick, read_ticks
from tests.chaos.load import Load
from tests.chaos.plan import Plan, PlannedTask
from tests.support.hosts import REDIS_HOST, SERVICE_HOST, SLOTS, HostStack
from tests.support.netns import Network
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.history import Sighting
    from tests.chaos.verdict import Report
    from tests.support.processes import LogProcess

CUT_OFF, KILLED, FROZEN = WORKERS = ("host-a", "host-b", "host-c")
TASKS_PER_S = 30.0
HOLD_EVERY = 6
HOLD_S = 300.0
HELD_MIN = 2
"""A host is hit when it runs so many holds."""
AGAIN_S = 90.0
"""How long to wait for what the checker then holds against its bounds."""
REST_S = 90.0
LATER_S = 1.2
AGAIN_S_MAX = 30.0
"""Lease, regrant delay, sweep and pickup are less than 10 s on a quiet machine (the report shows what it was); here
is room for one that runs other tests too. The checker would add up the bounds of faults that overlap."""
THAWED_S_MAX = 0.2
"""How long a child may run after the thaw of its host, until its warden has been given the processor."""


@dataclass(frozen=True, slots=True)
class HostsReport:
    """The checker's verdict, and what was measured about the hosts, in seconds."""

    verdict: Report
    cut_off_margins_s: tuple[float, ...]
    """For each hold of the host that was cut off: from its child's last tick there to the first elsewhere; sorted."""
    thawed_for_s: tuple[float, ...]
    """For each child of the frozen host: from the thaw to its last tick; 0 without one; sorted."""
    ended_otherwise: tuple[str, ...]
    """Holds that did not have exactly one child that came to its end."""
    filled_s: float
    """How long it took in the end to give every slot of every host a task."""
    took_s: float
    """The whole run."""

    def wrong(self, slowness: float = 1.0) -> list[str]:
        """Return what was not as promised, as sentences; ``slowness`` is that of a machine with other work to do."""
        few = "too few children to judge by"
        return [
            sentence
            for sentence, broken in {
                "the history is not valid": not self.verdict.ok,
                f"a task took more than {AGAIN_S_MAX:g} s to run again": any(
                    recovery.took_s > AGAIN_S_MAX * slowness for recovery in self.verdict.recoveries
                ),
                f"the host that was cut off had {few}": len(self.cut_off_margins_s) < HELD_MIN,
                "a task ran elsewhere before the host that was cut off had killed its child": any(
                    margin <= 0 for margin in self.cut_off_margins_s
                ),
                f"the frozen host had {few}": len(self.thawed_for_s) < HELD_MIN,
                f"a child ran for more than {THAWED_S_MAX} s after the thaw": any(
                    after_s > THAWED_S_MAX * slowness for after_s in self.thawed_for_s
                ),
                f"the children of these tasks did not come to their end exactly once: {self.ended_otherwise}": bool(
                    self.ended_otherwise
                ),
            }.items()
            if broken
        ]

    def text(self) -> str:
        """Return it for people."""
        margins, thawed = self.cut_off_margins_s or (0.0,), self.thawed_for_s or (0.0,)
        return (
            f"{self.verdict.text()}\n"
            f"cut off: {len(margins)} children were dead {margins[0]:.2f} to {margins[-1]:.2f} s "
            "before their tasks ran elsewhere\n"
            f"frozen: {len(thawed)} children ticked for at most {thawed[-1]:.3f} s after the thaw\n"
            f"the hosts that came back filled their {SLOTS * len(WORKERS)} slots within {self.filled_s:.1f} s; "
            f"all of it took {self.took_s:.0f} s"
        )


def run(tasks: int, seed: int = 1) -> HostsReport:
    """Run so many tasks over the hosts and hit each once. Leaves nothing behind.

    Raises RuntimeError when there can be no hosts on this machine, AssertionError with the logs
    when something does not come in time.
    """
    with Network((REDIS_HOST, SERVICE_HOST, *WORKERS)) as network:
        scene = _Scene(HostStack(network, WORKERS), _plan(tasks, seed))
        try:
            report = scene.play()
            scene.stack.close()
        except BaseException:
            print(scene.stack.report())
            raise
        finally:
            scene.stack.abort()
        return report


def _plan(tasks: int, seed: int) -> Plan:
    rand = random.Random(seed)
    planned = []
    for place in range(tasks):
        hold = place % HOLD_EVERY == 0
        orders = {"duration_s": [HOLD_S, 0.2] if hold else round(rand.uniform(0.03, 0.25), 3)}
        title = f"{'hold' if hold else 'short'}-{place:04d}"
        planned.append(PlannedTask(place / TASKS_PER_S, title, orders, "completed"))
    return Plan(seed, tuple(planned), ())


class _Scene:
    """One run: what happens, in order, and what was seen."""

    def __init__(self, stack: HostStack, plan: Plan) -> None:
        self.stack = stack
        self.until = str(stack.directory / "release-{host}")
        tasks = [replace(task, orders={**task.orders, "until": self.until}) for task in plan.tasks]
        self.load = Load(stack, replace(plan, tasks=tuple(tasks)))
        self.held: dict[str, frozenset[tuple[str, int]]] = {}
        self.hit_at: dict[str, float] = {}
        self.back_at: dict[str, float] = {}
        self.lost: LogProcess
        self.filled_s = 0.0
        self.begun_at = time.monotonic()

    def play(self) -> HostsReport:
        """Do everything and judge it."""
        for host in WORKERS:
            self._release(host)
        self.stack.start()
        self.lost = self.stack.workers[KILLED]
        self.load.start()
        self._hit_all()
        self._bring_all_back()
        self._come_to_rest()
        self._fill_all_slots()
        self._come_to_rest()
        self.load.finish()
        return self._judge()

    def _hit_all(self) -> None:
        """Cut one off, kill one, which boots at once, freeze one: each in the middle of its work."""
        network = self.stack.network
        for host, hit in ((CUT_OFF, network.cut), (KILLED, network.kill), (FROZEN, network.freeze)):
            self.held[host] = self._hold(host)
            self.hit_at[host] = time.time()
            hit(host)
            if host == KILLED:
                self._release(host)
                self.stack.launch_worker(host)

    def _bring_all_back(self) -> None:
        """Bring each back when its tasks have run elsewhere."""
        self._wait_until_run_again(KILLED)
        ready = self.stack.workers[KILLED].wait_event("worker_ready", timeout_s=AGAIN_S)
        self.back_at[KILLED] = datetime.fromisoformat(ready["ts"]).timestamp()
        self._wait_until_run_again(CUT_OFF)
        self.back_at[CUT_OFF] = time.time()
        self.stack.network.heal(CUT_OFF)
        self._release(CUT_OFF)
        self._wait_until_run_again(FROZEN)
        assert self.held[FROZEN] <= self._alive(), "what is frozen cannot end"
        self.back_at[FROZEN] = time.time()
        self.stack.network.thaw(FROZEN)
        # Until its old children are gone; were it to release them, their end would be no killer's merit.
        eventually(lambda: not self.held[FROZEN] & self._alive(), "the end of the frozen children", timeout_s=AGAIN_S)
        self._release(FROZEN)

    def _fill_all_slots(self) -> None:
        """Give every slot of every host a task at the same time.

        One may be lost on its way and come back only with the end of its lease: Redis does not know yet that nobody
        reads the connections that a host had before it was hit.
        """
        for host in WORKERS:
            self._file(host).unlink()
        since = time.monotonic()
        for place in range(SLOTS * len(WORKERS)):
            self._create(f"probe-{place:02d}", HOLD_S)
        eventually(
            lambda: all(len(self._running_on(host, "probe")) == SLOTS for host in WORKERS),
            "work in all slots again",
            timeout_s=AGAIN_S,
        )
        self.filled_s = time.monotonic() - since
        for host in WORKERS:
            self._release(host)

    def _create(self, title: str, duration_s: float | list[float]) -> None:
        task = self.stack.create(title, tick={"duration_s": duration_s, "until": self.until})
        self.load.creations.append(Creation(title, str(task["id"]), time.time(), ends="completed"))

    def _file(self, host: str) -> Path:
        return Path(self.until.replace("{host}", host))

    def _release(self, host: str) -> None:
        self._file(host).touch()

    def _hold(self, host: str) -> frozenset[tuple[str, int]]:
        """Let a host keep what holds it is given; return them (task id, token) when it has some."""
        self._file(host).unlink()

        def some() -> frozenset[tuple[str, int]] | None:
            found = {(ident, token) for ident, token in self._running_on(host, "hold") if token == 1}
            if len(found) >= HELD_MIN:
                return frozenset(found)
            if not self.load.busy:
                # A busy machine took so long that the planned ones have all ended, on hosts that hold nothing.
                self._create(f"hold-more-{len(self.load.creations)}", [HOLD_S, 0.2])
            return None

        return eventually(some, f"{HELD_MIN} tasks held by {host}", timeout_s=AGAIN_S)

    def _running_on(self, host: str, kind: str) -> frozenset[tuple[str, int]]:
        """Return the attempts at tasks of a kind that run on a host."""
        found = set()
        for ident in [str(c.task_id) for c in list(self.load.creations) if c.title.startswith(kind)]:
            lines = self.stack.tick_lines(ident)
            if lines and lines[-1]["kind"] == "tick" and lines[-1]["host"] == host:
                found.add((ident, lines[-1]["token"]))
        return frozenset(found)

    def _alive(self) -> set[tuple[str, int]]:
        return {(seen.task_id, seen.token) for seen in collect.sightings(self.stack.url)}

    def _wait_until_run_again(self, host: str) -> None:
        def all_have() -> bool:
            return all(
                any(line["token"] > token for line in self.stack.tick_lines(ident)) for ident, token in self.held[host]
            )

        eventually(all_have, f"the tasks of {host} running elsewhere", timeout_s=AGAIN_S)

    def _come_to_rest(self) -> None:
        """Wait until everything has ended, or too long, and a moment more for processes that should be gone."""
        until = time.monotonic() + REST_S
        while time.monotonic() < until and (self.load.busy or self._unfinished()):
            time.sleep(0.05)
        time.sleep(LATER_S)

    def _unfinished(self) -> int:
        marks = ",".join("?" * len(TERMINAL))
        with contextlib.closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as store:
            rows = store.execute(f"SELECT count(*) FROM tasks WHERE status NOT IN ({marks})", sorted(TERMINAL))
            return int(rows.fetchone()[0])

    @property
    def _database(self) -> Path:
        return self.stack.directory / "data" / "tasks.db"

    def _judge(self) -> HostsReport:
        ended_at = time.time()
        events, tasks = collect.read_store(self._database)
        faults = [
            Fault(kind, self.hit_at[host], back_at=self.back_at[host], host=host)
            for kind, host in (
                (FaultKind.HOST_CUT_OFF, CUT_OFF),
                (FaultKind.HOST_KILLED, KILLED),
                (FaultKind.HOST_FROZEN, FROZEN),
            )
        ]
        faults = collect.with_victims(faults, events)
        frozen = next(fault for fault in faults if fault.host == FROZEN)
        ticks = list(read_ticks(self.stack.ticks, collect.wall_minus_boot_s()))
        thawed = [t for t in ticks if (t.task_id, t.token) in frozen.victims and t.at >= frozen.up_at]
        with contextlib.closing(self.stack.redis.client()) as client:
            depths = collect.queue_depths(client, "dispatch")
        history = History(
            events=events,
            tasks=tasks,
            creations=tuple(self.load.creations),
            ticks=tuple(t for t in ticks if t not in thawed),
            calls=tuple(self.load.calls),
            faults=faults,
            sightings=tuple(seen for seen in self.load.sightings if not _is_frozen(seen, frozen)),
            exits=tuple(
                Exit(process.name, process.exit_code, ended_at)
                for process in self.stack.processes
                if process.exit_code is not None and process is not self.lost
            ),
            queue_depths=depths,
            ended_at=ended_at,
        )
        lasts = [max((t.at for t in thawed if t.task_id == ident), default=0.0) for ident, _ in frozen.victims]
        ends = Counter(t.task_id for t in ticks if t.kind == "end")
        return HostsReport(
            check(history),
            tuple(sorted(_margins(ticks, self.held[CUT_OFF]))),
            tuple(sorted(max(0.0, last - frozen.up_at) for last in lasts)),
            tuple(sorted(c.task_id or "" for c in self.load.creations if "hold" in c.title and ends[c.task_id] != 1)),
            self.filled_s,
            time.monotonic() - self.begun_at,
        )


def _is_frozen(seen: Sighting, fault: Fault) -> bool:
    """Say whether somebody saw a child that was frozen, or whose warden had no time yet after the thaw."""
    return (seen.task_id, seen.token) in fault.victims and fault.at <= seen.at <= fault.up_at + THAWED_S_MAX


def _margins(ticks: list[Tick], held: frozenset[tuple[str, int]]) -> Iterator[float]:
    """Yield the time from the last tick of each old child to the first of the next; negative if they overlap."""
    for ident, token in held:
        old = max(t.at for t in ticks if t.task_id == ident and t.token == token)
        yield min(t.at for t in ticks if t.task_id == ident and t.token > token) - old
