"""The store on SQLite: one writer thread with group commit, a few readers.

The writer takes everything that waits (at most BATCH_MAX) into one
``BEGIN IMMEDIATE``, each request in a savepoint of its own, commits once, and
only then answers. It never waits for a batch to fill. WAL with
``synchronous=FULL``: what was answered survives a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import URL, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import NullPool

from dispatch.errors import ConfigurationError, DispatchError, OverloadedError
from dispatch.log import get_logger
from dispatch.service import schema
from dispatch.service.events import Bus, Event
from dispatch.service.migrations import migrate
from dispatch.service.sqlite_keys import SqliteKeys
from dispatch.service.store import Tx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection

    from dispatch.service.clock import Clock
    from dispatch.service.keys import Key

T = TypeVar("T")

BATCH_MAX: Final = 64
_QUEUE_MAX: Final = 4096
_READERS: Final = 2
BUSY_MS: Final = 5_000

_log: Final = get_logger("service")


class _Job:
    """One request for the writer."""

    __slots__ = ("error", "events", "expires_ms", "future", "result", "work")

    def __init__(self, work: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None
        self.events: list[Event] = []
        self.expires_ms: int | None = None

    def settle(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _unavailable(exc: DBAPIError) -> OverloadedError:
    return OverloadedError(f"The database cannot do it now ({exc.orig}); nothing was changed, try again.")


class SqliteStore:
    """See the module. ``start`` and ``close`` belong to one event loop."""

    def __init__(self, path: Path, clock: Clock, *, busy_ms: int = BUSY_MS) -> None:
        """``busy_ms`` is how long a transaction waits for another process that locks the file."""
        self.clock = clock
        self.bus = Bus()
        self.on_lease: Callable[[int], None] = lambda _expires_ms: None
        self._path = path
        self._busy_ms = busy_ms
        self._keys = SqliteKeys(path)
        self._closed = False
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)),
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
            connect_args={"check_same_thread": False},
        )
        event.listen(self._engine, "connect", self._configure)
        self._readers = ThreadPoolExecutor(_READERS, "store-reader", initializer=self._open_reader)
        self._local = threading.local()
        self._opened: list[Connection] = []
        self._writer: threading.Thread | None = None
        self._lock_fd = -1
        self._loop: asyncio.AbstractEventLoop

    def _configure(self, connection: sqlite3.Connection, _record: Any) -> None:
        for pragma in (
            f"busy_timeout={self._busy_ms}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "cache_size=-16000",
            "journal_size_limit=67108864",
        ):
            connection.execute(f"PRAGMA {pragma}")
        # SQLite's own lower() knows ASCII only; searches must find the same on every database.
        connection.create_function("lower", 1, lambda text: text.lower() if text else text, deterministic=True)

    def _open_reader(self) -> None:
        connection = self._engine.connect()
        connection.exec_driver_sql("PRAGMA query_only=ON")
        self._local.connection = connection
        self._opened.append(connection)

    async def start(self) -> None:
        """Open, lock and migrate the file. Raises ConfigurationError."""
        self._loop = asyncio.get_running_loop()
        connection = await asyncio.to_thread(self._prepare)
        self._writer = threading.Thread(target=self._write_all, args=(connection,), name="store-writer", daemon=True)
        self._writer.start()

    def _prepare(self) -> Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            connection = self._engine.connect()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            migrate(connection)
            connection.exec_driver_sql("COMMIT")
            self._keys.open()
            self.bus.last_seq = connection.execute(select(func.coalesce(func.max(schema.events.c.seq), 0))).scalar_one()
        except (OSError, sqlite3.Error, DBAPIError) as exc:
            cause = exc.orig if isinstance(exc, DBAPIError) else exc
            raise ConfigurationError(f"The database {self._path} cannot be opened: {cause}.") from exc
        return connection

    def _take_lock(self) -> None:
        # Two services on one file would each believe to be the only clock and writer.
        self._lock_fd = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            self._lock_fd = -1
            raise ConfigurationError(
                f"Another task service uses the database {self._path}; stop it or set DISPATCH_DATABASE_URL."
            ) from None

    def write(self, work: Callable[[Tx], T]) -> asyncio.Future[T]:
        """Queue ``work`` for the writer; the future is done once the transaction is durable."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed or self._queue.qsize() >= _QUEUE_MAX:
            future.set_exception(OverloadedError("The service has too many requests waiting; try again."))
        else:
            self._queue.put(_Job(work, future))
        return future

    def read(self, work: Callable[[Tx], T]) -> asyncio.Future[T]:
        """Run ``work`` on a reader's snapshot."""
        return self._loop.run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[Tx], T]) -> T:
        connection: Connection = self._local.connection
        try:
            connection.exec_driver_sql("BEGIN")
            try:
                return work(Tx(connection, self.clock.now_ms()))
            finally:
                connection.exec_driver_sql("ROLLBACK")
        except DBAPIError as exc:
            raise _unavailable(exc) from exc

    async def key(self, key_id: str) -> Key | None:
        """Look a key up, at once and as it is now."""
        return self._keys.key(key_id)

    async def has_keys(self) -> bool:
        """Say whether a key was ever made."""
        return self._keys.has_keys()

    async def close(self) -> None:
        """Finish what waits, then close."""
        self._closed = True
        if self._writer is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._opened:
            connection.close()
        self._keys.close()
        self._engine.dispose()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _write_all(self, connection: Connection) -> None:
        """Run batches until told to stop: the writer thread."""
        raw: Any = connection.connection.driver_connection
        stop = False
        while not stop:
            jobs: list[_Job] = []
            job = self._queue.get()
            while True:
                if job is None:
                    stop = True
                    break
                jobs.append(job)
                if len(jobs) >= BATCH_MAX:
                    break
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
            if jobs:
                self._run_batch(connection, raw, jobs)
                self._loop.call_soon_threadsafe(self._finish, jobs)
        connection.close()

    def _finish(self, jobs: list[_Job]) -> None:
        """Answer a committed batch and publish what happened, on the event loop."""
        for job in jobs:
            if job.expires_ms is not None:
                self.on_lease(job.expires_ms)
            job.settle()
        self.bus.publish([event for job in jobs for event in job.events])

    def _run_batch(self, connection: Connection, raw: sqlite3.Connection, jobs: list[_Job]) -> None:
        """Run every job in one transaction; every one of them then has its result or its error."""
        try:
            raw.execute("BEGIN IMMEDIATE")
            if len(jobs) == 1:
                self._run_one(connection, jobs[0])
                raw.execute("ROLLBACK" if jobs[0].error is not None else "COMMIT")
                return
            for job in jobs:
                # In a savepoint, so that its failure undoes only itself.
                raw.execute("SAVEPOINT job")
                self._run_one(connection, job)
                if job.error is not None:
                    raw.execute("ROLLBACK TO job")
                raw.execute("RELEASE job")
            raw.execute("COMMIT")
        except (sqlite3.Error, DBAPIError) as exc:
            cause = exc.orig if isinstance(exc, DBAPIError) else exc
            _log.warning("store_unavailable", error=str(cause), requests=len(jobs))
            with contextlib.suppress(sqlite3.Error):
                raw.rollback()
            for job in jobs:
                job.events = []
                job.expires_ms = None
                job.error = OverloadedError(f"The database cannot do it now ({cause}); nothing was changed, try again.")

    def _run_one(self, connection: Connection, job: _Job) -> None:
        """Run one job; it then has its result or its error. Raises database errors."""
        tx = Tx(connection, self.clock.now_ms())
        try:
            job.result = job.work(tx)
            job.events = tx.events
            job.expires_ms = tx.first_expiry_ms
        except (DispatchError, IntegrityError) as exc:
            job.error = exc
        except (sqlite3.Error, DBAPIError):
            raise
        except Exception as exc:  # noqa: BLE001 - a mistake in one request must not end the writer
            job.error = exc
