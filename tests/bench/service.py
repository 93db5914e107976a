"""The task service alone: requests a second on both databases, beside raw SQL; and lists of many tasks."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor, parse_task
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS = 16
ENGINES = ("sqlite", "postgresql")
RAW_BATCH = 16
"""As many requests as wait at once share a commit, as they do in the service."""


@contextlib.contextmanager
def _service(engine: str) -> Iterator[tuple[ServiceProcess, str]]:
    """Run a service with full durability; give it and its database's URL."""
    with tempfile.TemporaryDirectory(prefix="dispatch-") as directory, contextlib.ExitStack() as stack:
        url = f"sqlite:///{directory}/tasks.db"
        if engine == "postgresql":
            server = stack.enter_context(PostgresServer(fsync="on", synchronous_commit="on"))
            url = stack.enter_context(server.database())
        with ServiceProcess(Path(directory), DISPATCH_DATABASE_URL=url) as service:
            yield service, url


def _spread(url: str, items: list[Any], work: Callable[[Client, Any], None]) -> float:
    """Do ``work`` for every item over CONNECTIONS connections; return how long it took in seconds."""
    queue = iter(items)
    lock = threading.Lock()
    client = Client(protocol.endpoint(url), Actor("agent", "bench", "bench"))
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while True:
                with lock:
                    item = next(queue, None)
                if item is None:
                    return
                work(client, item)
        except BaseException as exc:  # noqa: BLE001 - it is raised below
            errors.append(exc)
        finally:
            client.close()

    threads = [threading.Thread(target=run) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - began


def measure_requests(engine: str, count: int) -> dict[str, float]:
    """Claims and completions through REST, mixed, one service process and the client on the same cores."""

    def claim_and_complete(client: Client, task_id: str) -> None:
        token = parse_task(client.send(protocol.claim(task_id, lease_s=60))).fencing_token
        client.send(protocol.complete(task_id, [{"response": "done"}], token=token))

    with _service(engine) as (service, url):
        ids: list[str] = []
        _spread(service.url, list(range(count + 100)), lambda c, _: ids.append(_create(c)))
        _spread(service.url, ids[:100], claim_and_complete)
        taken_s = _spread(service.url, ids[100:], claim_and_complete)
        raw_s = _raw(engine, url, count)
    return {f"{engine}_requests_per_s": 2 * count / taken_s, f"{engine}_raw_per_s": 2 * count / raw_s}


def _create(client: Client) -> str:
    return parse_task(client.send(protocol.create("bench"))).id


_CLAIM = """UPDATE tasks SET status = 'in_progress', held = {true}, holder_type = 'agent', holder_id = 'b',
 holder_name = 'b', held_since = 1, fencing_token = fencing_token + 1, lease_ms = 60000, lease_expires_at = 2,
 entered_at = 1, updated_at = 1 WHERE id = {task} AND status = 'todo' AND held = {false} RETURNING *"""
_READ = "SELECT * FROM tasks WHERE id = {task}"
_COMPLETE = """UPDATE tasks SET status = 'completed', held = {false}, lease_expires_at = NULL, completed_at = 2,
 outputs = '[]', result_hash = 'x', entered_at = 2, updated_at = 2
 WHERE id = {task} AND status = 'in_progress' RETURNING *"""
_EVENT = """INSERT INTO events
 (type, task_id, from_status, to_status, actor_type, actor_id, actor_name, token, created_at, seq)
 SELECT 'task.x', {task}, 'todo', 'in_progress', 'agent', 'b', 'b', 1, 1, coalesce(max(seq), 0) + 1 FROM events"""
_RESET = "UPDATE tasks SET status = 'todo', held = {false}, holder_id = NULL"


def _raw(engine: str, url: str, count: int) -> float:
    """Do the same by the same statements in the same transactions with the bare driver; return seconds."""
    words = (
        {"true": "1", "false": "0", "task": "?"}
        if engine == "sqlite"
        else {"true": "true", "false": "false", "task": "%s"}
    )
    statements = [text.format(**words) for text in (_CLAIM, _EVENT, _READ, _COMPLETE, _EVENT, _EVENT)]
    connection: Any
    if engine == "sqlite":
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
    else:
        connection = psycopg.connect(url, autocommit=True)
    try:
        connection.execute(_RESET.format(**words))
        ids = [row[0] for row in connection.execute("SELECT id FROM tasks").fetchall()][:count]
        began = time.perf_counter()
        for part in (statements[:2], statements[2:]):
            for start in range(0, len(ids), RAW_BATCH):
                connection.execute("BEGIN")
                for task in ids[start : start + RAW_BATCH]:
                    connection.execute("SAVEPOINT job")
                    for statement in part:
                        connection.execute(statement, (task,))
                    connection.execute("RELEASE job")
                connection.execute("COMMIT")
        return time.perf_counter() - began
    finally:
        connection.close()


def measure_list(engine: str, count: int) -> dict[str, float]:
    """List 20 of very many tasks, through REST: newest first as ATS clients do, and in board order as agents do."""
    with _service(engine) as (service, url):
        _fill(engine, url, count)
        client = Client(protocol.endpoint(service.url), Actor("agent", "bench", "bench"))
        newest = protocol.list_tasks(limit=20)
        board = protocol.tool("core_list_tasks", {"project_key": "main", "status": ["todo"]})
        found = {
            f"{engine}_{name}_ms": _median_ms(client, request) for name, request in (("list", newest), ("board", board))
        }
        client.close()
    return found


def _median_ms(client: Client, request: protocol.Request) -> float:
    taken = []
    for _ in range(15):
        began = time.perf_counter()
        client.send(request)
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def _fill(engine: str, url: str, count: int) -> None:
    """Write tasks of all sorts straight into the database."""
    fixed = {"project_id": 1, "description": "", "type": "task", "channel": "default"}
    fixed |= dict.fromkeys(("source_type", "source_id", "source_name"), "agent")
    words = ("todo", "backlog", "completed", "todo", "failed")
    names = (*fixed, "uuid", "title", "priority", "status", "created_at", "updated_at")
    rows = [
        (*fixed.values(), str(uuid.UUID(int=at + 1)), f"task {at}", at % 10 + 1, words[at % 5], at, at)
        for at in range(count)
    ]
    if engine == "sqlite":
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            raw.executemany(f"INSERT INTO tasks ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", rows)
            raw.execute("COMMIT")
            raw.execute("ANALYZE")
        return
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        with cursor.copy(sql.SQL("COPY tasks ({}) FROM STDIN").format(columns)) as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute("ANALYZE tasks")
