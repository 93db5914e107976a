"""The store on SQLite: one file, one process.

Every batch of the writer (``writer.py``) is one ``BEGIN IMMEDIATE``, each
request in a savepoint of its own. WAL with ``synchronous=FULL``: what was
answered survives a power cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import URL, bindparam, create_engine, event, func, insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from dispatch.errors import ConfigurationError
from dispatch.service import collation, schema
from dispatch.service.migrations import migrate
from dispatch.service.opening import sqlite_refusal
from dispatch.service.sqlite_keys import SqliteKeys
from dispatch.service.store import Tx
from dispatch.service.writer import GroupCommit, reason_of, refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection

    from dispatch.service.clock import Clock
    from dispatch.service.keys import Key

T = TypeVar("T")

BUSY_MS: Final = 5_000
_APPEND: Final = insert(schema.events).values({column.name: bindparam(column.name) for column in schema.events.c})


class SqliteStore(GroupCommit):
    """See the module."""

    errors = (sqlite3.Error, DBAPIError)

    def __init__(self, path: Path, clock: Clock, *, busy_ms: int = BUSY_MS) -> None:
        """``busy_ms`` is how long a transaction waits for another process that locks the file."""
        super().__init__(clock)
        self._path = path
        self._busy_ms = busy_ms
        self._keys = SqliteKeys(path)
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)),
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
            connect_args={"check_same_thread": False},
        )
        event.listen(self._engine, "connect", self._configure)
        self._local = threading.local()
        self._opened: list[Connection] = []
        self._lock_fd = -1
        self._newest = 0
        self._connection: Connection
        self._raw: sqlite3.Connection

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
        connection.create_function("dispatch_fold", 1, collation.fold, deterministic=True)

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        self._opened.append(connection)
        return connection

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            self._connection = connection = self._connect()
            raw: Any = connection.connection.driver_connection
            self._raw = raw
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            migrate(connection)
            connection.exec_driver_sql("COMMIT")
            self._keys.open()
            self._newest = connection.execute(select(func.coalesce(func.max(schema.events.c.seq), 0))).scalar_one()
            self.bus.last_seq = self._newest
        except (OSError, sqlite3.Error, DBAPIError) as exc:
            raise sqlite_refusal(self._path, exc) from exc

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

    def _let_go(self) -> None:
        for connection in self._opened:
            connection.close()
        self._opened.clear()
        self._keys.close()
        self._engine.dispose()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _read(self, work: Callable[[Tx], T]) -> T:
        try:
            if (connection := getattr(self._local, "connection", None)) is None:
                connection = self._local.connection = self._connect()
                connection.exec_driver_sql("PRAGMA query_only=ON")
            connection.exec_driver_sql("BEGIN")
            try:
                return work(Tx(connection, self.clock.now_ms()))
            finally:
                connection.exec_driver_sql("ROLLBACK")
        except DBAPIError as exc:
            raise refusal(reason_of(exc)) from exc

    async def key(self, key_id: str) -> Key | None:
        """Look a key up, at once and as it is now."""
        return self._keys.key(key_id)

    async def has_keys(self) -> bool:
        """Say whether a key was ever made."""
        return self._keys.has_keys()

    def _begin(self, *, mark: bool) -> tuple[Connection, int]:
        self._raw.execute("BEGIN IMMEDIATE")
        if mark:
            self._raw.execute("SAVEPOINT job")
        return self._connection, self._newest

    def _mark(self) -> None:
        self._raw.execute("RELEASE job")
        self._raw.execute("SAVEPOINT job")

    def _undo(self) -> None:
        self._raw.execute("ROLLBACK TO job")

    def _append(self, lines: list[dict[str, Any]]) -> None:
        self._connection.execute(_APPEND, lines)

    def _commit(self, newest: int | None) -> None:
        self._raw.execute("COMMIT")
        if newest is not None:
            self._newest = newest

    def _rollback(self) -> None:
        self._raw.execute("ROLLBACK")

    def _recover(self) -> bool:
        with contextlib.suppress(sqlite3.Error):
            self._raw.rollback()
        return False
