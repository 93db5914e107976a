"""One transaction on the service's database from another process, whether or not the service runs.

For the operator's commands on this machine that must work before the service
may be reached, such as making the first API key.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from sqlalchemy import URL, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from dispatch.errors import ConfigurationError, OverloadedError
from dispatch.service import tenants
from dispatch.service.clock import Clock
from dispatch.service.migrations import is_current, migrate
from dispatch.service.opening import sqlite_refusal
from dispatch.service.store import Tx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from dispatch.service.postgres import PostgresStore

T = TypeVar("T")

BUSY_MS: Final = 5_000


def open_engine(url: str) -> Engine:
    """Return an engine on which every connection begins its transactions itself. Raises ConfigurationError."""
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc or len(parts.path) < 2:
        raise ConfigurationError(
            "DISPATCH_DATABASE_URL must be sqlite:///path/to/file.db or postgresql://user@host/database;"
            f" it begins with {parts.scheme!r}."
        )
    path = Path(url.removeprefix("sqlite:///")).expanduser()
    engine = create_engine(URL.create("sqlite", database=str(path)), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    event.listen(engine, "connect", _configure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise sqlite_refusal(path, exc) from exc
    return engine


def _configure(connection: Any, _record: Any) -> None:
    for pragma in (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def transaction(url: str, work: Callable[[Tx], T]) -> T:
    """Run ``work`` as one transaction, which is undone when it raises, and return its result.

    Brings the schema up to date first, but never under a running service. Waits
    some seconds for the service's own transaction. Raises ConfigurationError
    when the database cannot be opened, OverloadedError when it is busy.
    """

    def with_default(tx: Tx) -> T:
        tenants.ensure_default(tx)
        return work(tx)

    if is_postgres(url):
        return open_postgres(url, Clock()).once(with_default)
    with _sqlite(url) as tx:
        return with_default(tx)


def is_postgres(url: str) -> bool:
    """Say whether a database URL names PostgreSQL."""
    return url.partition("://")[0] in ("postgresql", "postgres")


def open_postgres(url: str, clock: Clock) -> PostgresStore:
    """Return the store on PostgreSQL, not started yet. Raises ConfigurationError, which says how to install it."""
    try:
        from dispatch.service.postgres import PostgresStore  # noqa: PLC0415 - an extra that may be missing
    except ImportError as exc:
        raise ConfigurationError(
            f"DISPATCH_DATABASE_URL names PostgreSQL, but its driver cannot be loaded ({exc});"
            " run: pip install 'ats-dispatch[postgres]'"
        ) from exc
    return PostgresStore(url, clock)


@contextlib.contextmanager
def _sqlite(url: str) -> Iterator[Tx]:
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                _bring_up_to_date(connection, engine.url.database or "")
                tx = Tx(connection, Clock().now_ms())
                yield tx
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                with contextlib.suppress(DBAPIError):
                    connection.exec_driver_sql("ROLLBACK")
                raise
    except DBAPIError as exc:
        if "locked" in str(exc.orig) or "busy" in str(exc.orig):
            raise OverloadedError(f"The database {engine.url.database} is busy; nothing was changed.") from exc
        raise sqlite_refusal(engine.url.database or "", exc) from exc
    finally:
        engine.dispose()


def _bring_up_to_date(connection: Connection, path: str) -> None:
    if is_current(connection):
        return
    # The service holds this lock as long as it runs.
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        migrate(connection)
    except BlockingIOError:
        raise ConfigurationError(
            f"A task service of another version runs on {path}; restart it with this version first."
        ) from None
    finally:
        os.close(descriptor)
