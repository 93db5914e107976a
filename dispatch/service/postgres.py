"""The store on PostgreSQL: one database, any number of service processes.

Every batch of the writer (``writer.py``) holds one advisory lock of the whole
database, so that all batches of all processes come one after another: nothing
deadlocks, nothing has to be serialised again, and the numbers of events are in
the order of their commits. ``follower.py`` tells this process what the others
committed.

A connection that failed is thrown away; the next batch, or the next read,
makes a new one.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import psycopg
from psycopg import conninfo
from sqlalchemy import String, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from dispatch.errors import ConfigurationError
from dispatch.log import get_logger
from dispatch.service import collation, schema
from dispatch.service.follower import ALIVE, CHANNEL, KEYS_CHANNEL, Follower
from dispatch.service.keys import KeptKeys
from dispatch.service.migrations import is_current, migrate
from dispatch.service.opening import postgres_refusal
from dispatch.service.store import Tx
from dispatch.service.writer import DatabaseAwayError, GroupCommit, reason_of, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from dispatch.errors import DispatchError
    from dispatch.service.clock import Clock
    from dispatch.service.events import Event

T = TypeVar("T")

_CONNECT: Final = {
    "application_name": "dispatch",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""What the URL may change. A server that vanished without a word is noticed within these times."""

_SESSION: Final = {
    # A process that stands still in a transaction holds up all others, but not longer than this; the second one is
    # for a stop in the middle of a long message, and known since version 17.
    "idle_in_transaction_session_timeout": "5s",
    "transaction_timeout": "30s",
    "lock_timeout": "15s",
    "statement_timeout": "30s",
    "idle_session_timeout": "0",
    # The server looks for vanished clients as we look for a vanished server: their locks go with them.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "jit": "off",
}
_SET: Final = "SELECT set_config(name, %s::jsonb ->> name, %s) FROM pg_settings WHERE %s::jsonb ? name"
_UNHURRIED: Final = dict.fromkeys(("statement_timeout", "lock_timeout", "transaction_timeout"), "0")
_DURABLE: Final = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
_WRITING: Final = 0x6469_7370_0001  # a number that no other program is likely to lock: "disp" and what it is for
_MIGRATING: Final = _WRITING + 1
_BEGIN: Final = f"BEGIN; SELECT pg_advisory_xact_lock({_WRITING}); SELECT coalesce(max(seq), 0) FROM events"  # noqa: S608 - a constant
_types: Final = ("text[]" if isinstance(column.type, String) else "bigint[]" for column in schema.events.c)
# One array for each column. Several messages would be a pipeline, and the server does not end the transaction of a
# process that stands still in the middle of one.
_APPEND: Final = (
    f"INSERT INTO events ({', '.join(schema.events.c.keys())})"  # noqa: S608 - names of our own columns
    f" SELECT * FROM unnest({', '.join(f'%s::{name}' for name in _types)})"
).encode()
_SNAPSHOT: Final = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_NOW_MS: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"

_log: Final = get_logger("service")


def _parse(url: str) -> dict[str, Any]:
    """Return the parameters of a URL. Raises ConfigurationError."""
    try:
        said = conninfo.conninfo_to_dict(url)
        # A password with "/" or "@" in it is taken for these, and would be shown when they are not found.
        readable = (
            all(part.isdigit() for part in str(said.get("port", 0)).split(","))
            and "@" not in f"{said.get('host', '')}{said.get('dbname', '')}"
        )
    except psycopg.Error:
        readable = False  # the message would repeat the URL, password included
    if not readable:
        raise ConfigurationError(
            "DISPATCH_DATABASE_URL cannot be read; it must be like postgresql://user:password@host:5432/database,"
            " with special characters as %XX."
        )
    return said


class PostgresStore(KeptKeys, GroupCommit):
    """See the module."""

    batch_max = 32
    readers = 4
    is_shared = True
    errors = (psycopg.Error, DBAPIError)

    def __init__(self, url: str, clock: Clock) -> None:
        """``url`` is libpq's; what it does not say comes from PG* variables, as always. Raises ConfigurationError."""
        GroupCommit.__init__(self, clock)
        KeptKeys.__init__(self)
        said = _parse(url)
        self._where = f"{said.get('dbname', '')}@{said.get('host', '')}"
        self._parameters: dict[str, Any] = {**_CONNECT, **said, "client_encoding": "utf8"}
        self._engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect_raw,
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
            pool_reset_on_return=None,
            use_native_hstore=False,
        )
        self._local = threading.local()
        self._lock = threading.Lock()
        self._opened: set[Connection] = set()
        self._connection: Connection | None = None
        self._raw: psycopg.Connection[Any]
        self._follower: Follower | None = None

    def _connect_raw(self) -> psycopg.Connection[Any]:
        raw = psycopg.connect(**self._parameters, autocommit=True)
        _configure(raw, _SESSION)
        # Whatever the administrator prefers for other uses: what was answered must survive a crash of the server.
        raw.execute(_DURABLE)
        return raw

    def _connect(self) -> Connection:
        try:
            connection = self._engine.connect()
        except (psycopg.Error, DBAPIError) as exc:
            raise DatabaseAwayError(reason_of(exc)) from exc
        with self._lock:
            self._opened.add(connection)
        return connection

    def _drop(self, connection: Connection | None) -> None:
        if connection is not None:
            with self._lock:
                self._opened.discard(connection)
            connection.invalidate()
            connection.close()

    def _connect_writer(self) -> Connection:
        self._connection = self._connect()
        self._raw = _raw(self._connection)
        return self._connection

    def _drop_writer(self) -> None:
        self._drop(self._connection)
        self._connection = None

    async def start(self) -> None:
        """Open and migrate the database, and hear of the other services. Raises as ``_open`` does."""
        await super().start()
        self._follower = Follower(self, self._parameters, self._is_own, self.forget_keys)
        try:
            self.is_alone = await self._follower.start()
        except psycopg.Error as exc:
            raise self._not_opened(exc) from exc

    async def close(self) -> None:
        """Finish what waits, then close."""
        if self._follower is not None:
            await self._follower.close()
        await super().close()

    def once(self, work: Callable[[Tx], T]) -> T:
        """Run one transaction from a process that is no service, without ``start``. Raises what ``work`` raises.

        Every service then looks its keys up anew. The schema is brought up to
        date first, but never under a running service. Raises ConfigurationError,
        DatabaseUnavailableError, OverloadedError.
        """
        try:
            connection = self._connect_writer()
            if not is_current(connection) and self._in_service(connection):
                raise ConfigurationError(
                    f"A task service of another version runs on {self._where}; restart it with this version first."
                )
            self._drop_writer()
            self._open()
            connection, _ = self._begin(mark=False)
            try:
                result = work(Tx(connection, self.clock.now_ms()))
                self._send(f"SELECT pg_notify('{KEYS_CHANNEL}', ''); COMMIT")
            except BaseException:
                self._recover()
                raise
        except (DatabaseAwayError, psycopg.Error, DBAPIError) as exc:
            raise self._not_opened(exc) from exc
        finally:
            self._let_go()
        return result

    def _in_service(self, connection: Connection) -> bool:
        """Say whether a service process is alive on this database."""
        free = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({ALIVE})").scalar_one()
        if free:
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({ALIVE})")
        return not free

    def _is_own(self, pid: int) -> bool:
        """Say whether a server process is the one that serves our writer."""
        return self._connection is not None and self._raw.info.backend_pid == pid

    def _not_opened(self, exc: BaseException) -> DispatchError:
        is_away = isinstance(exc, DatabaseAwayError) or self._is_outage(exc)
        return postgres_refusal(self._where, exc, is_away=is_away)

    def _open(self) -> None:
        try:
            connection = self._connect_writer()
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
            if encoding != "UTF8":
                raise ConfigurationError(
                    f"The PostgreSQL database {self._where} has the encoding {encoding}; make one with ENCODING 'UTF8'."
                )
            if not collation.choose_folding(connection, self._engine.dialect):
                _log.warning("search_knows_ascii_only", database=self._where)
            connection.exec_driver_sql("BEGIN")
            # A big table may take its time, and whoever starts at the same time waits for that.
            _configure(self._raw, {**_UNHURRIED, "idle_in_transaction_session_timeout": "60s"}, local=True)
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATING})")
            migrate(connection)
            connection.exec_driver_sql("COMMIT")
            self.clock.set(connection.exec_driver_sql(_NOW_MS).scalar_one())
            newest = connection.exec_driver_sql("SELECT coalesce(max(seq), 0) FROM events").scalar_one()
            self.bus.last_seq = newest
        except (DatabaseAwayError, psycopg.Error, DBAPIError) as exc:
            raise self._not_opened(exc) from exc

    def _let_go(self) -> None:
        for connection in list(self._opened):
            self._drop(connection)
        self._engine.dispose()

    def _is_outage(self, error: BaseException) -> bool:
        cause = error.orig if isinstance(error, DBAPIError) else error
        return isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError)

    def _send(self, statements: str) -> psycopg.Cursor[Any]:
        # Several statements in one message are one round trip; they cannot be prepared.
        return self._raw.execute(statements.encode(), prepare=False)

    def _begin(self, *, mark: bool) -> tuple[Connection, int]:
        statements = f"{_BEGIN}; SAVEPOINT job" if mark else _BEGIN
        fresh = self._connection is None
        connection = self._connection or self._connect_writer()
        try:
            answers = self._send(statements)
        except psycopg.Error:
            if fresh or not self._raw.closed:
                raise
            # The connection was lost since the last batch; nothing of this one was done.
            self._drop_writer()
            connection = self._connect_writer()
            answers = self._send(statements)
        answers.nextset()
        answers.nextset()
        return connection, int(answers.fetchall()[0][0])

    def _mark(self) -> None:
        self._send("RELEASE job; SAVEPOINT job")

    def _undo(self) -> None:
        self._send("ROLLBACK TO job")

    def _append(self, lines: list[dict[str, Any]]) -> None:
        self._raw.execute(_APPEND, [[line[name] for line in lines] for name in schema.events.c.keys()])  # noqa: SIM118

    def _commit(self, newest: int | None) -> None:
        if newest is None:
            self._send("COMMIT")
        else:
            self._send(f"SELECT pg_notify('{CHANNEL}', '{newest:d}'); COMMIT")

    def _rollback(self) -> None:
        self._send("ROLLBACK")

    def _recover(self) -> bool:
        if self._connection is None:
            return False
        lost = self._raw.closed
        self._drop_writer()
        if self._follower is not None:
            # What was committed without our knowing it is in the table.
            self._loop.call_soon_threadsafe(self._follower.wake)
        return lost

    def _publish(self, events: list[Event], before: int) -> None:
        if before > self.bus.last_seq and self._follower is not None:
            # Others committed before us what was not published yet; ours comes with it.
            self._follower.wake()
        else:
            self.bus.publish([event for event in events if event.seq > self.bus.last_seq])

    def _read(self, work: Callable[[Tx], T]) -> T:
        try:
            kept = self._snapshot(getattr(self._local, "connection", None))
            try:
                return work(Tx(kept, self.clock.now_ms()))
            finally:
                self._end_snapshot(kept)
        except DatabaseAwayError as exc:
            raise refusal(exc) from exc
        except (psycopg.Error, DBAPIError) as exc:
            if isinstance(exc, DBAPIError) and not self._is_outage(exc):
                raise
            raise refusal(reason_of(exc)) from exc

    def _snapshot(self, kept: Connection | None) -> Connection:
        """Begin a snapshot on the connection of this thread, or on a new one if it was lost."""
        if kept is not None:
            try:
                _raw(kept).execute(_SNAPSHOT)
            except psycopg.Error:
                self._local.connection = None
                self._drop(kept)
            else:
                return kept
        kept = self._local.connection = self._connect()
        _raw(kept).execute(_SNAPSHOT)
        return kept

    def _end_snapshot(self, kept: Connection) -> None:
        if not kept.invalidated:
            try:
                _raw(kept).execute(b"ROLLBACK")
            except psycopg.Error:
                pass  # what was read was read
            else:
                return
        self._local.connection = None
        self._drop(kept)


def _configure(raw: psycopg.Connection[Any], settings: dict[str, str], *, local: bool = False) -> None:
    """Make those settings that the server knows, for the session or the transaction."""
    values = json.dumps(settings)
    raw.execute(_SET, [values, local, values])


def _raw(connection: Connection) -> psycopg.Connection[Any]:
    """Return the driver's connection, for what is no use case's statement."""
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)
