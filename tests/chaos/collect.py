"""Read a history from what a run left: the service's database, the queues, the children's files, /proc."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.history import Event, Fault, FinalTask, Sighting, end_of_grant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import redis

EVENT_ROWS = """
    SELECT seq, task_id, type, from_status, to_status, created_at, actor_id, token, note
    FROM events ORDER BY seq
"""
TASK_ROWS = """
    SELECT id, title, status, fencing_token, attempts, lease_losses, lease_expires_at, not_before
    FROM tasks ORDER BY id
"""


def wall_minus_boot_s() -> float:
    """Return what to add to a CLOCK_BOOTTIME reading to get wall time."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def read_store(path: Path) -> tuple[tuple[Event, ...], tuple[FinalTask, ...]]:
    """Return the event log and the tasks of a SQLite store, in one consistent read. Times become seconds."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        store.execute("BEGIN")
        events = tuple(_event(row) for row in store.execute(EVENT_ROWS))
        tasks = tuple(
            FinalTask(str(ident), title, status, token, attempts, losses, _seconds(expires), _seconds(not_before))
            for ident, title, status, token, attempts, losses, expires, not_before in store.execute(TASK_ROWS)
        )
    return events, tasks


def _event(row: tuple) -> Event:
    seq, task_id, kind, came, went, at_ms, actor, token, note = row
    runner = (note or "") if kind == "task.started" else ""
    counted = (note or "").startswith("counted") if kind == "task.released" else None
    return Event(seq, str(task_id), kind, came, went, at_ms / 1000, actor, token, runner, counted)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def with_victims(faults: Iterable[Fault], events: Iterable[Event]) -> tuple[Fault, ...]:
    """Return the faults with the attempts that ran on what they killed: started there, and not ended before."""
    of_task: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        of_task[event.task_id].append(event)
    started = [event for events in of_task.values() for event in events if event.type == "task.started"]
    found = []
    for fault in faults:
        hit = set()
        for event in started:
            if _was_hit(event, fault):
                end = end_of_grant(of_task[event.task_id], event.token or 0)
                if end is None or end.at >= fault.at:
                    hit.add((event.task_id, event.token or 0))
        found.append(replace(fault, victims=frozenset(hit)))
    return tuple(found)


def _was_hit(event: Event, fault: Fault) -> bool:
    """Say whether a fault hit the place where an attempt was started, if it was still there."""
    if fault.host:
        return event.runner.startswith(f"{fault.host}/") and event.at < fault.up_at
    return _pid_of(event.runner) in fault.pids


def _pid_of(runner: str) -> int:
    """Return the pool child in the name of a runner, ``host/pid/nonce``."""
    return int(runner.split("/")[1])


def queue_depths(client: redis.Redis, queue: str, prefix: str = "dispatch:") -> dict[str, int]:
    """Return how many messages wait in the queue, and how many were popped but not accepted."""
    return {queue: client.llen(prefix + queue), "unacked": client.hlen(prefix + "unacked")}


def sightings(url: str) -> Iterator[Sighting]:
    """Yield every live process of an attempt at this task service, by the environment of its child."""
    mark = f"ATS_URL={url}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            variables = (entry / "environ").read_bytes().split(b"\0")
            if mark in variables:
                found = dict(v.decode().split("=", 1) for v in variables if v.startswith(b"ATS_"))
                yield Sighting(found["ATS_TASK_ID"], int(found["ATS_FENCING_TOKEN"]), pid, time.time())
