"""Somebody watches a running task from a host of their own: how late is each line, and does each come once?

The child on the worker's host writes down in every line when it wrote it; the
clock is the same on all hosts, because they are namespaces of one machine. The
reader is the real ``dispatch logs -f`` on a third host.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.hosts import REDIS_HOST, SERVICE_HOST, HostStack
from tests.support.netns import HostProcess, Network
from tests.support.processes import children_of, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORKER_HOST, DESK = "host-a", "desk"
DELAY_S_MAX: Final = 2.0
"""What the issue promises."""
CAUGHT_UP_S_MAX: Final = 12.0
"""How long after the return of the service all that was written meanwhile may take: pauses of worker and reader."""
RESTARTS: Final = ("ingress", "redis", "service")
_LATE_S: Final = 60.0
_CHILD: Final = """
import json, time
began = time.monotonic()
for number in range({lines}):
    time.sleep(max(0.0, began + number * {every_s} - time.monotonic()))
    if number % 10 == 0:
        print(f"::progress {{number * 100 // {lines}}} line {{number}}", flush=True)
    text = "The tests of the parser pass now; next I look at the writer. " * (1 + number % 5)
    line = {{"type": "assistant", "number": number, "at": time.monotonic(), "text": text}}
    print(json.dumps(line), flush=True)
"""


class Reader(HostProcess):
    """A command whose lines are kept together with when they came."""

    def _read(self) -> None:
        self.lines: list[tuple[float, str]] = []
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for raw in stream:
                self.lines.append((time.monotonic(), raw.decode().rstrip("\n")))
                self.output.append(self.lines[-1][1])


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the child: its number, when it was written, and when it was read."""

    number: int
    written_at: float
    read_at: float

    @property
    def delay_s(self) -> float:
        """How late it was."""
        return self.read_at - self.written_at


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What the reader saw of ``expected`` lines, and what the processes needed for it, KB before and after."""

    expected: int
    lines: tuple[Line, ...]
    away: tuple[tuple[float, float], ...]
    """When the service was away: a line of that time, or that would have been shown in it, may be late."""
    progress: int
    memory_kb: dict[str, tuple[int, int]]

    def _is_late(self, line: Line) -> bool:
        return any(line.read_at >= since and line.written_at <= until + CAUGHT_UP_S_MAX for since, until in self.away)

    @property
    def undisturbed_s(self) -> list[float]:
        """The delays of all lines while the service was there, sorted."""
        return sorted(line.delay_s for line in self.lines if not self._is_late(line))

    @property
    def disturbed_s(self) -> list[float]:
        """The delays of the others, sorted."""
        return sorted(line.delay_s for line in self.lines if self._is_late(line))

    def wrong(self, slowness: float = 1.0) -> list[str]:
        """Return what was not as promised, as sentences; ``slowness`` is that of a machine with other work to do."""
        numbers = [line.number for line in self.lines]
        missing = sorted(set(range(self.expected)) - set(numbers))
        late = [round(delay, 3) for delay in self.undisturbed_s if delay > DELAY_S_MAX * slowness]
        away_s = max((until - since for since, until in self.away), default=0.0)
        very_late = [round(delay, 3) for delay in self.disturbed_s if delay > away_s + CAUGHT_UP_S_MAX * slowness]
        return [
            sentence
            for sentence, broken in {
                f"lines were lost: {missing}": missing,
                "lines came twice": len(set(numbers)) != len(numbers),
                "lines came out of order": numbers != sorted(numbers),
                f"lines were late: {late}": late,
                f"lines came long after the service was back: {very_late}": very_late,
                "no progress was shown": not self.progress,
            }.items()
            if broken
        ]

    def text(self) -> str:
        """Return it for people."""
        told = [f"{len(self.lines)} of {self.expected} lines; {_spread('delay', self.undisturbed_s)}"]
        if self.away:
            told.append(_spread("around the restarts of the service", self.disturbed_s))
        told += [f"{name}: {before} KB, then {after} KB" for name, (before, after) in self.memory_kb.items()]
        return "\n".join(told)


def _spread(name: str, delays: list[float]) -> str:
    if not delays:
        return f"{name}: no line"
    p50, p99 = (delays[min(len(delays) - 1, int(len(delays) * part))] for part in (0.5, 0.99))
    return f"{name} of {len(delays)}: p50 {p50:.3f} s, p99 {p99:.3f} s, max {delays[-1]:.3f} s"


def run(
    seconds: float, *, every_s: float = 1.0, restarts: Sequence[str] = RESTARTS, away_s: float = 3.0
) -> WatchReport:
    """Watch a child that prints for so long, while these are restarted one after the other, the service with a pause.

    Raises RuntimeError when there can be no hosts on this machine, AssertionError with the logs when something does
    not come in time.
    """
    with Network((REDIS_HOST, SERVICE_HOST, WORKER_HOST, DESK)) as network:
        scene = _Scene(HostStack(network, (WORKER_HOST,)), int(seconds / every_s), every_s, away_s)
        try:
            report = scene.play(seconds, restarts)
            scene.stack.close()
        except BaseException:
            print(scene.stack.report())
            raise
        finally:
            scene.stack.abort()
        return report


class _Scene:
    """One run."""

    def __init__(self, stack: HostStack, lines: int, every_s: float, away_s: float) -> None:
        self.stack = stack
        self._lines = lines
        self._every_s = every_s
        self._away_s = away_s
        self._away: list[tuple[float, float]] = []
        stack.env |= {"DISPATCH_LEASE_MS": "30000", "DISPATCH_DEFAULT_LEASE_MS": "30000"}

    def play(self, seconds: float, restarts: Sequence[str]) -> WatchReport:
        """Do everything and judge it."""
        stack = self.stack.start(1)
        code = _CHILD.format(lines=self._lines, every_s=self._every_s)
        ident = str(stack.create("an agent", tick={"code": code})["id"])
        reader = self._watch(ident)
        eventually(lambda: self._seen(reader), "the first line")
        began_at = time.monotonic()
        before = self._memory(reader)
        for place, name in enumerate(restarts, 1):
            _sleep_until(began_at + seconds * place / (len(restarts) + 1))
            getattr(self, f"_restart_{name}")()
        _sleep_until(began_at + seconds * 0.8)
        after = self._memory(reader)
        assert reader.wait(seconds * 0.2 + _LATE_S) == 0, reader.tail()
        task = stack.task(ident)
        assert task["status"] == "completed", task
        names = before.keys() & after.keys()
        return WatchReport(
            self._lines,
            tuple(self._seen(reader)),
            tuple(self._away),
            sum("% line" in line or "%] line" in line for _, line in reader.lines),
            {name: (before[name], after[name]) for name in sorted(names)},
        )

    def _watch(self, ident: str) -> Reader:
        # Not by run_on: what comes is noted with its time.
        stack = self.stack
        argv = stack.network.argv(DESK, [sys.executable, "-m", "dispatch", "logs", "-f", ident])
        reader = Reader("reader", argv, stack.env)
        stack.processes.append(reader)
        return reader

    @staticmethod
    def _seen(reader: Reader) -> list[Line]:
        """Return the child's lines in the thread, and those of the response that had no time to come there."""
        found, rest = [], []
        for read_at, text in list(reader.lines):
            _, tab, line = text.rpartition("\t")
            if line.startswith('{"type": "assistant"'):
                facts = json.loads(line)
                (found if tab else rest).append(Line(facts["number"], facts["at"], read_at))
        last = max((line.number for line in found), default=-1)
        return found + [line for line in rest if line.number > last]

    def _restart_ingress(self) -> None:
        old = self._process("ingress")
        old.stop()
        new = self.stack.run_on(SERVICE_HOST, "ingress", ["dispatch", "ingress"], self.stack.redis.settings("ingress"))
        new.wait_event("ingress_ready")

    def _restart_redis(self) -> None:
        self.stack.redis.stop()
        self.stack.redis.start()

    def _restart_service(self) -> None:
        since = time.monotonic()
        self._process("service").stop()
        _sleep_until(since + self._away_s)
        self.stack.run_on(SERVICE_HOST, "service", ["dispatch", "serve"]).wait_event("service_ready")
        self._away.append((since, time.monotonic()))

    def _process(self, name: str) -> HostProcess:
        found = [one for one in self.stack.processes if one.name == name and one.exit_code is None]
        assert isinstance(found[-1], HostProcess)
        return found[-1]

    def _memory(self, reader: Reader) -> dict[str, int]:
        inner = {
            "service": self._process("service").inner,
            "ingress": self._process("ingress").inner,
            # On a busy machine the restarts may take longer than the rest of the task, and the reader has ended.
            "reader": next(iter(children_of(reader.pid)), 0),
            "pool child": next(self._pool_children(), 0),
        }
        return {name: _rss_kb(pid) for name, pid in inner.items() if pid}

    def _pool_children(self) -> Iterator[int]:
        """Yield the pids of those who run an attempt: the parents of its child."""
        for pid in self.stack.network.pids(WORKER_HOST):
            if any("tick.py" in _command(child) for child in children_of(pid)):
                yield pid


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    return ""


def _rss_kb(pid: int) -> int:
    rows = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmRSS:"))


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
