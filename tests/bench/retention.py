"""The task service with years of ended tasks: its start, and what claims take before, during and after the pruner.

Run it by itself, it takes a quarter of an hour: ``python -m tests.bench.retention sqlite 200000``. Each task has ten
events and two or three log messages of a kilobyte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor, parse_task
from tests.support.database import put_database
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS_EACH = 10
LOG_CHARS = 1000
NEVER = {f"DISPATCH_{name}_KEEP_S": "0" for name in ("EVENTS", "LOG_MESSAGES", "DELIVERIES", "IDEMPOTENCY_KEYS")}
SHORT = dict.fromkeys((*NEVER, "DISPATCH_HISTORY_KEEP_S", "DISPATCH_TASKS_KEEP_S"), "86400")

_SERIES = {
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {0}) ",
    "postgresql": "WITH s(n) AS (SELECT generate_series(1, {0})) ",
}
_TASKS = """INSERT INTO tasks (id, uuid, project_id, title, description, type, channel, priority, status, outputs,
 source_type, source_id, source_name, created_at, updated_at, entered_at, completed_at)
 {0} SELECT n, 'uuid-' || n, 1, 'task ' || n, '', 'task', 'default', 5, 'completed', '[{{"response":"done"}}]',
 'agent', 'a', 'a', {1} + n * 10, {1} + n * 10 + 9, {1} + n * 10 + 9, {1} + n * 10 + 9 FROM s"""
_MESSAGES = """INSERT INTO messages (id, task_id, actor_type, actor_id, actor_name, kind, parts, created_at)
 {0} SELECT n, (n * 2 + 4) / 5, 'agent', 'a', 'a', 'log', '{2}', {1} + n * 4 FROM s"""
# Of four events one tells of a message.
_EVENTS = """INSERT INTO events (seq, type, task_id, actor_type, actor_id, actor_name, token, message_id, created_at,
 to_status) {0} SELECT n, CASE WHEN n % 4 = 0 THEN 'task.message' ELSE 'task.claimed' END,
 CASE WHEN n % 4 = 0 THEN (n / 2 + 4) / 5 ELSE (n + 9) / 10 END, 'agent', 'a', 'a', 1,
 CASE WHEN n % 4 = 0 THEN n / 4 END, {1} + n, CASE WHEN n % 4 = 0 THEN NULL ELSE 'in_progress' END FROM s"""


def fill(engine: str, url: str, count: int) -> None:
    """Write ``count`` tasks that ended a month ago, with all that belongs to them."""
    long_ago = round((time.time() - 30 * 86_400) * 1000)
    text = json.dumps([{"type": "text", "content": "x" * LOG_CHARS}])
    statements = [
        sql.format(_SERIES[engine].format(number), long_ago, text)
        for sql, number in ((_TASKS, count), (_MESSAGES, count * 5 // 2), (_EVENTS, count * EVENTS_EACH))
    ]
    if engine == "sqlite":
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            for statement in statements:
                raw.execute(statement)
            raw.execute("COMMIT")
        return
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        for table in ("tasks", "messages", "events"):
            connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', column_name), 100000000)"
                f" FROM information_schema.columns WHERE table_name = '{table}'"
                " AND column_name IN ('id', 'seq')".encode()
            )
        connection.execute(b"ANALYZE")


def claims(url: str, seconds: float, until: threading.Event | None = None) -> list[tuple[float, float]]:
    """Create, claim and complete tasks one after another, some 30 a second; return what each claim and completion took.

    In milliseconds.
    """
    client = Client(protocol.endpoint(url), Actor("agent", "bench", "bench"))
    taken = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not (until is not None and until.is_set()):
        ident = parse_task(client.send(protocol.create("bench"))).id
        began = time.perf_counter()
        token = parse_task(client.send(protocol.claim(ident, lease_s=60))).fencing_token
        claimed = time.perf_counter()
        client.send(protocol.complete(ident, [{"response": "done"}], token=token))
        taken.append(((claimed - began) * 1000, (time.perf_counter() - claimed) * 1000))
        time.sleep(0.02)
    client.close()
    return taken


def shown(taken: list[tuple[float, float]]) -> str:
    """Say p50, p99 and the longest, of claims and completions."""
    words = []
    for name, values in zip(("claim", "complete"), zip(*taken, strict=True), strict=True):
        ordered = sorted(values)
        worst = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        words.append(f"{name} p50 {statistics.median(ordered):.1f} p99 {worst:.1f} max {ordered[-1]:.1f} ms")
    return f"{', '.join(words)} ({len(taken)})"


@contextlib.contextmanager
def place(engine: str) -> Iterator[tuple[Path, str]]:
    """Give a directory and the URL of an empty, durable database."""
    with tempfile.TemporaryDirectory(prefix="dispatch-") as directory, contextlib.ExitStack() as stack:
        if engine == "sqlite":
            put_database(Path(directory))
            yield Path(directory), f"sqlite:///{directory}/tasks.db"
            return
        server = stack.enter_context(PostgresServer(fsync="on", synchronous_commit="on", autovacuum="on"))
        yield Path(directory), stack.enter_context(server.database())


def measure(engine: str, count: int, *, keeps_tasks: bool) -> None:
    """Measure and say it."""
    short = {**SHORT, "DISPATCH_TASKS_KEEP_S": "0"} if keeps_tasks else SHORT
    with place(engine) as (directory, url), place(engine) as (other, other_url), contextlib.ExitStack() as stack:
        # On a machine that does other things too, only what is measured at the same time can be compared.
        control = stack.enter_context(ServiceProcess(other, DISPATCH_DATABASE_URL=other_url, **NEVER))
        with ServiceProcess(directory, DISPATCH_DATABASE_URL=url, **NEVER):
            pass
        began = time.monotonic()
        fill(engine, url, count)
        print(f"{engine}: {count} tasks written in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        with ServiceProcess(directory, DISPATCH_DATABASE_URL=url, **NEVER) as service:
            print(f"start {time.monotonic() - began:.2f} s", flush=True)
            print(f"before: {shown(claims(service.url, 20))}", flush=True)
        with ServiceProcess(directory, DISPATCH_DATABASE_URL=url, **short) as service:
            began = time.monotonic()
            during, beside = [], []
            while not (done := service.process.find("old_rows_removed")):
                during += claims(service.url, 10)
                beside += claims(control.url, 10)
                print(f"left: {counts(engine, url)}", flush=True)
            print(f"pruned in {time.monotonic() - began:.0f} s: {done[0]['removed']}", flush=True)
            print(f"during: {shown(during)}", flush=True)
            print(f"beside, where nothing is removed: {shown(beside)}", flush=True)
            print(f"after: {shown(claims(service.url, 20))}", flush=True)
        if engine == "sqlite":
            print({path.name: path.stat().st_size >> 20 for path in directory.iterdir()}, flush=True)


def counts(engine: str, url: str) -> dict[str, int]:
    """Return how many rows are left."""
    connection: Any
    if engine == "sqlite":
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    else:
        connection = psycopg.connect(url, autocommit=True)
    with contextlib.closing(connection):
        names = ("tasks", "messages", "events")
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=sorted(_SERIES))
    parser.add_argument("tasks", type=int)
    parser.add_argument("--keep-tasks", action="store_true", help="remove only what belongs to them")
    given = parser.parse_args()
    measure(given.engine, given.tasks, keeps_tasks=given.keep_tasks)
