"""Several services over one PostgreSQL, and what they do when one of them, or the database, goes away."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import text

from dispatch.ats.model import Actor
from dispatch.errors import DispatchError, OverloadedError
from dispatch.service import tasks, tenants
from dispatch.service.clock import Clock
from dispatch.service.events import STEP
from dispatch.service.keys import KEPT_S
from dispatch.service.postgres import PostgresStore
from dispatch.service.server import open_store
from tests.support.postgres import PostgresServer, shared_server
from tests.support.processes import PATIENCE_S, ROOT, eventually
from tests.support.promises import FairClock, promised
from tests.support.service import Client, ServiceProcess, Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ANN = Actor("agent", "ann", "Ann")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What ends with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def database(stack: ExitStack) -> str:
    """The URL of a database with the schema, on the shared server."""
    return stack.enter_context(shared_server().database())


@pytest.fixture
def start(stack: ExitStack, tmp_path: Path) -> Callable[..., ServiceProcess]:
    """Start services over a database."""

    def begin(url: str, **settings: str) -> ServiceProcess:
        service = ServiceProcess(tmp_path, DISPATCH_DATABASE_URL=url, **settings)
        return stack.enter_context(service)

    return begin


@dataclass(frozen=True)
class Pair:
    """Two services over one database."""

    database: str
    services: tuple[ServiceProcess, ServiceProcess]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One for all tests that leave both of them running."""
    with ExitStack() as stack:
        url = stack.enter_context(shared_server().database())
        made = (ServiceProcess(tmp_path_factory.mktemp("pair"), DISPATCH_DATABASE_URL=url) for _ in range(2))
        one, two = [stack.enter_context(service) for service in made]
        yield Pair(url, (one, two))


class Load:
    """Threads that create, claim and complete on a service, and note what was acknowledged."""

    def __init__(self, *services: ServiceProcess, threads: int = 2) -> None:
        self.acknowledged: dict[int, str] = {}
        self.refused = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._churn, args=(service.url, f"churner-{number}"))
            for service in services
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _churn(self, url: str, name: str) -> None:
        client = Client(url, name)
        try:
            while not self._stop.is_set():
                if ref := self._step(client, "/tasks", {"title": "load"}, None):
                    self.acknowledged[ref] = "pending"
                    if self._step(client, f"/tasks/{ref}/claim", {"claim_id": "c"}, ref):
                        self.acknowledged[ref] = "in_progress"
                        if self._step(client, f"/tasks/{ref}/complete", {"outputs": [ref], "fencing_token": 1}, ref):
                            self.acknowledged[ref] = "completed"
        finally:
            client.close()

    def _step(self, client: Client, path: str, body: Any, ref: int | None) -> int | None:
        """Send a request until it is not refused with 503; None when the service is gone or the load ends."""
        while not self._stop.is_set():
            try:
                status, answer = client.call("POST", path, body)
            except (OSError, http.client.HTTPException):
                return None
            if status in (200, 201):
                return int(answer["task"]["id"])
            assert status == 503, answer
            assert answer["code"] == "UNAVAILABLE"
            self.refused += 1
            time.sleep(0.05)
            if ref is None:
                return None
        return None

    def grown(self, count: int) -> None:
        """Wait until ``count`` more tasks were created."""
        goal = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= goal, f"{count} tasks under load")

    def end(self) -> None:
        """Stop the load."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def load(stack: ExitStack) -> Callable[..., Load]:
    """Put load on services."""

    def begin(*services: ServiceProcess, threads: int = 2) -> Load:
        made = Load(*services, threads=threads)
        stack.callback(made.end)
        return made

    return begin


@pytest.fixture
def subscribe(stack: ExitStack) -> Callable[..., Subscriber]:
    """Subscribe to services."""

    def begin(service: ServiceProcess, **subscription: Any) -> Subscriber:
        made = Subscriber(service.url, **subscription)
        stack.callback(made.close)
        return made

    return begin


def logged_seqs(url: str) -> list[int]:
    """The numbers of all events until now that anybody is told."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT seq FROM events WHERE type != %s ORDER BY seq", [STEP]).fetchall()
    return [row[0] for row in rows]


def check_acknowledged(client: Client, acknowledged: dict[int, str]) -> None:
    """Whatever was answered is there, and no later than one step behind."""
    order = ["pending", "in_progress", "completed"]
    for ref, word in acknowledged.items():
        task = client.get(f"/tasks/{ref}?fields=status,fencing_token,outputs")["task"]
        assert order.index(task["status"]) - order.index(word) in (0, 1), (ref, word, task)
        assert (task["outputs"] == [ref]) == (task["status"] == "completed")


def test_services_tell_each_other_everything(
    pair: Pair, load: Callable[..., Load], subscribe: Callable[..., Subscriber]
) -> None:
    """Under load on two services subscribers of each get every event of both, once, in order; so does a late one."""
    before = max(logged_seqs(pair.database), default=0)
    subscribers = [subscribe(service) for service in pair.services]
    running = load(*pair.services)
    running.grown(100)
    subscribers.append(subscribe(pair.services[0], since=before))
    running.grown(100)
    running.end()
    expected = [seq for seq in logged_seqs(pair.database) if seq > before]
    assert len(expected) >= 500
    for subscriber in subscribers:
        eventually(lambda subscriber=subscriber: len(subscriber.events) >= len(expected), "all events")
        assert subscriber.seqs == expected


def test_a_quiet_service_hears_of_an_event_at_once(pair: Pair, subscribe: Callable[..., Subscriber]) -> None:
    """What one service commits reaches the subscribers of an idle one by notification, not by the next look."""
    one, two = pair.services
    subscriber = subscribe(two)
    client = one.client()
    client.create()
    eventually(lambda: len(subscriber.events) == 1)
    delays = []
    for count in range(2, 12):
        with FairClock() as clock:
            client.create()
            eventually(lambda count=count: len(subscriber.events) == count)
        delays.append(clock.passed_s)
    assert sorted(delays)[5] < 0.5, delays


def test_every_service_knows_of_a_key_at_once(database: str, start: Callable[..., ServiceProcess]) -> None:
    """A key that is made or revoked counts on all services before what they keep of keys would run out."""
    services = [start(database), start(database)]

    def statuses(token: str | None) -> list[int]:
        return [service.client(token=token).call("GET", "/tasks")[0] for service in services]

    assert statuses(None) == [200, 200]
    ident, text = services[0].make_key("agent-one")
    within_s = KEPT_S * 0.8
    with promised(within_s, "the key on both services"):
        eventually(lambda: statuses(None) == [401, 401], "the end of calls without a key")
        eventually(lambda: statuses(text) == [200, 200], "the key on both services")
    services[1].revoke_key(ident)
    with promised(within_s, "the end of the key on both services"):
        eventually(lambda: statuses(text) == [401, 401], "the end of the key on both services")


def test_kill_9_of_one_service_leaves_the_other_in_charge(
    database: str, start: Callable[..., ServiceProcess], load: Callable[..., Load]
) -> None:
    """The other serves on, all that was acknowledged is there, and the dead one's grants expire in their time."""
    victim, other = (start(database, DISPATCH_REGRANT_DELAY_S="0") for _ in range(2))
    client = victim.client()
    ref = client.create()["id"]
    client.post(f"/tasks/{ref}/claim", {"lease_duration": 1_500})
    running = load(victim, other)
    running.grown(60)
    victim.kill()
    running.grown(60)
    running.end()
    client = other.client()
    check_acknowledged(client, running.acknowledged)
    eventually(lambda: client.get(f"/tasks/{ref}")["task"]["status"] == "pending", "the expiry")
    assert not other.process.find("leases_extended")
    assert not other.process.find("store_unavailable")


def test_leases_are_extended_only_by_the_first_of_several(database: str, start: Callable[..., ServiceProcess]) -> None:
    """Whoever starts beside a living service extends nothing; whoever starts alone extends everything."""
    one = start(database)
    client = one.client()
    client.post(f"/tasks/{client.create()['id']}/claim", {"lease_duration": 60_000})
    two = start(database)
    assert not two.process.find("leases_extended")
    one.kill()
    two.kill()
    assert start(database).process.find("leases_extended", leases=1)


def _stopped_in_a_batch(database: str, service: ServiceProcess) -> bool:
    """Freeze a service and say whether it stands still in a transaction; if not, it goes on."""
    service.process.signal(signal.SIGSTOP)
    with psycopg.connect(database, autocommit=True) as connection:
        state = (
            "SELECT count(*) FROM pg_stat_activity JOIN pg_locks USING (pid)"
            " WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND state = 'idle in transaction'"
        )
        time.sleep(0.05)  # what was under way in the server has ended by then
        if connection.execute(state).fetchone() == (1,):
            return True
    service.process.signal(signal.SIGCONT)
    return False


@pytest.mark.slow
def test_a_frozen_service_holds_up_the_others_for_seconds_only(pair: Pair, load: Callable[..., Load]) -> None:
    """Stopped in the middle of a batch, it loses its turn after 5 s; resumed, it serves again and nothing is lost."""
    frozen, other = pair.services
    running = load(frozen, threads=4)
    running.grown(20)
    eventually(lambda: _stopped_in_a_batch(pair.database, frozen), "a stop in a batch")
    client = other.client()
    with promised(10, "a call beside the frozen service"):
        client.create()
    client.create()
    frozen.process.signal(signal.SIGCONT)
    running.grown(20)
    running.end()
    check_acknowledged(client, running.acknowledged)


def test_a_restart_of_the_database_is_survived(
    stack: ExitStack,
    start: Callable[..., ServiceProcess],
    load: Callable[..., Load],
    subscribe: Callable[..., Subscriber],
) -> None:
    """Ended under load twice: 503 meanwhile, then as before by itself; nothing lost, no event missed or doubled."""
    server = stack.enter_context(PostgresServer())
    database = stack.enter_context(server.database())
    services = [start(database), start(database)]
    subscribers = [subscribe(service) for service in services]
    running = load(*services)
    client = services[0].client()
    for number in (signal.SIGQUIT, signal.SIGINT):
        running.grown(30)
        server.shut_down(number)
        status, answer = client.call("POST", "/tasks", {"title": "meanwhile"})
        assert (status, answer["code"]) == (503, "UNAVAILABLE")
        assert client.call("GET", "/tasks")[0] == 503
        assert client.get("/health")["status"] == "ok"
        server.start()
    running.grown(30)
    running.end()
    assert running.refused
    check_acknowledged(client, running.acknowledged)
    expected = logged_seqs(database)
    for subscriber in subscribers:
        eventually(lambda subscriber=subscriber: len(subscriber.events) >= len(expected), "all events")
        assert subscriber.seqs == expected
    client.create()
    for service in services:
        assert service.process.find("store_unavailable")
        assert not [line for line in service.process.output if "Traceback" in line]
        assert service.stop() == 0


def test_services_that_start_at_once_migrate_once(stack: ExitStack, tmp_path: Path) -> None:
    """Three services on an empty database all serve; the schema and the default project are there once."""
    database = shared_server().url(shared_server().empty_database())
    services = [ServiceProcess(tmp_path, DISPATCH_DATABASE_URL=database) for _ in range(3)]
    threads = [threading.Thread(target=service.start) for service in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for service in services:
        stack.callback(service.stop)
        service.client().create()
    client = services[0].client()
    assert client.get("/tasks")["count"] == 3
    assert len(client.get("/orgs")["organizations"]) == 1
    with psycopg.connect(database) as connection:
        assert len(connection.execute("SELECT * FROM alembic_version").fetchall()) == 1


def _run(directory: Path, url: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DISPATCH_DATA_DIR": str(directory),
        "DISPATCH_BIND": "127.0.0.1:0",
        "DISPATCH_DATABASE_URL": url,
        **env,
    }
    return subprocess.run(
        [sys.executable, "-m", "dispatch.service"], env=env, capture_output=True, text=True, timeout=60, check=False
    )


async def _open(url: str) -> None:
    store = open_store(url, Clock())
    try:
        await store.start()
    finally:
        await store.close()


async def test_a_database_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    """Away, unknown, of another encoding, a URL that means something else: a sentence that shows no password.

    Only the one that is away may come by itself: exit 69, after which the unit starts again.
    """
    server = shared_server()
    away = server.url("postgres").replace(str(server.directory), str(tmp_path))
    with server.connect() as connection:
        connection.execute("CREATE DATABASE old_encoding ENCODING 'LATIN1' TEMPLATE template0")
    for url, word, code in (
        (away.replace("postgres@", "postgres:hunter2@"), "No such file or directory", 69),
        (server.url("nowhere"), 'database "nowhere" does not exist', 78),
        (server.url("old_encoding"), "ENCODING 'UTF8'", 78),
        ("postgresql://locked:1@hunter2@host/c", "cannot be read", 78),
        ("postgresql://locked:hunter2/1@host/c", "cannot be read", 78),
        ("postgresql://locked:1/hunter2@host/c", "cannot be read", 78),
        ("postgresql://locked:%hunter2@host/c", "cannot be read", 78),
    ):
        with pytest.raises(DispatchError, match=word) as caught:
            await _open(url)
        assert caught.value.exit_code == code
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_service_that_may_not_in_says_why(tmp_path: Path) -> None:
    """A wrong password and a missing driver: one line on stderr, exit 78, and no password anywhere."""
    server = shared_server()
    with server.connect() as connection:
        connection.execute("CREATE ROLE locked LOGIN PASSWORD 'open sesame'")
    url = server.tcp_url("postgres", "locked:hunter2")
    (tmp_path / "psycopg.py").write_text("raise ImportError('No module named psycopg')\n")
    for word, path in (
        ('password authentication failed for user "locked"', str(ROOT)),
        ("pip install 'ats-dispatch[postgres]'", f"{tmp_path}:{ROOT}"),
    ):
        ended = _run(tmp_path, url, PYTHONPATH=path)
        assert ended.returncode == 78, ended
        assert word in ended.stderr
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert "hunter2" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("how", ["PGPASSWORD", "DISPATCH_DATABASE_PASSWORD", "DISPATCH_DATABASE_PASSWORD_FILE"])
def test_the_password_may_stand_apart(
    database: str, start: Callable[..., ServiceProcess], tmp_path: Path, how: str
) -> None:
    """PGPASSWORD works as with every program of PostgreSQL, and so does a setting or a file of ours."""
    server = shared_server()
    with server.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS keyed")
        connection.execute("CREATE ROLE keyed LOGIN SUPERUSER PASSWORD 'ses/a@me'")
    (tmp_path / "word").write_text("ses/a@me\n")
    name = database.partition("@/")[2].partition("?")[0]
    value = str(tmp_path / "word") if how.endswith("_FILE") else "ses/a@me"
    service = start(server.tcp_url(name, "keyed"), **{how: value})
    service.client().create()
    assert service.stop() == 0


class Cut(PostgresStore):
    """A store whose connection is lost right after a commit, before the answer came."""

    cut = False

    def _commit(self, newest: int | None) -> None:
        super()._commit(newest)
        if self.cut:
            self.cut = False
            self._raw.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")


async def test_a_commit_without_an_answer_is_not_called_undone(database: str) -> None:
    """Whoever asked is told that it may have been done; the event of what was done is published, once."""
    store = Cut(database, Clock())
    await store.start()
    published: list[Any] = []
    store.bus.listen(published.extend)
    try:
        await store.write(tenants.ensure_default)
        store.cut = True
        with pytest.raises(OverloadedError, match="may or may not have been done"):
            await store.write(lambda tx: tasks.create(tx, None, ANN, tasks.NewTask("cut")))
        row = await store.write(lambda tx: tasks.create(tx, None, ANN, tasks.NewTask("next")))
        async with asyncio.timeout(PATIENCE_S):
            while len(published) < 2:  # noqa: ASYNC110 - what is waited for is another task's doing
                await asyncio.sleep(0.01)
        assert [event.task.title for event in published] == ["cut", "next"]
        assert published[1].task.id == row.id
    finally:
        await store.close()


async def test_a_broken_statement_does_not_harm_its_neighbours(database: str) -> None:
    """A request that the database finds faulty fails alone; those in the same commit succeed."""
    store = PostgresStore(database, Clock())
    await store.start()
    try:
        await store.write(tenants.ensure_default)
        new = tasks.NewTask("t")
        results = await asyncio.gather(
            store.write(lambda tx: tasks.create(tx, None, ANN, new)),
            store.write(lambda tx: tx.one(text("SELECT 1 / 0"))),
            store.write(lambda tx: tasks.create(tx, None, ANN, new)),
            return_exceptions=True,
        )
        assert [isinstance(result, Exception) for result in results] == [False, True, False]
        assert not isinstance(results[1], OverloadedError)
        assert (await store.read(tasks.stats))["total"] == 2
    finally:
        await store.close()


async def test_lost_connections_are_made_anew_without_a_refusal(database: str) -> None:
    """When every connection was cut while nothing was under way, the next write and reads succeed."""
    store = PostgresStore(database, Clock())
    await store.start()
    try:
        await store.write(tenants.ensure_default)
        await store.read(tasks.stats)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid != pg_backend_pid()"
            )
        await store.write(lambda tx: tasks.create(tx, None, ANN, tasks.NewTask("t")))
        for _ in range(8):
            assert (await store.read(tasks.stats))["total"] == 1
    finally:
        await store.close()
