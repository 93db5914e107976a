"""What the service's gauges show, read from the store when somebody scrapes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, func, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from dispatch import metrics
from dispatch.core.lifecycle import Status
from dispatch.service import readiness
from dispatch.service.schema import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.sql.compiler import SQLCompiler

    from dispatch.service.store import Store, Tx

_PATIENCE_S: Final = 5.0
_CHANNELS_MAX: Final = 100
_C: Final = tasks.c


class database_bytes(FunctionElement[int]):  # noqa: N801 - SQL functions are lower case
    """The size of the database."""

    type = BigInteger()
    inherit_cache = True
    name = "database_bytes"


@compiles(database_bytes, "postgresql")
def _in_postgresql(_element: database_bytes, _compiler: SQLCompiler, **_options: Any) -> str:
    return "pg_database_size(current_database())"


@compiles(database_bytes, "sqlite")
def _in_sqlite(_element: database_bytes, _compiler: SQLCompiler, **_options: Any) -> str:
    return "(SELECT page_count * page_size FROM pragma_page_count, pragma_page_size)"


def watch(store: Store) -> None:
    """Have the gauges read from ``store``. Must be called on the event loop that runs it."""
    loop = asyncio.get_running_loop()

    def reader(work: Callable[[Tx], metrics.Values]) -> Callable[[], metrics.Values]:
        async def read() -> Any:
            return await store.read(work)

        return lambda: asyncio.run_coroutine_threadsafe(read(), loop).result(_PATIENCE_S)

    for name, work in _WORK.items():
        metrics.watch(name, reader(work))


def _by_status(tx: Tx) -> metrics.Values:
    rows = tx.all(select(_C.status, func.count()).group_by(_C.status))
    return {(state.value,): 0.0 for state in Status} | {(row[0],): float(row[1]) for row in rows}


def _age(tx: Tx) -> metrics.Values:
    ready = or_(_C.not_before.is_(None), _C.not_before <= tx.now_ms)
    query = (
        select(_C.channel, func.min(_C.entered_at))
        .where(_C.status == Status.TODO.value, _C.held.is_(False), ready, ~readiness.waits)
        .group_by(_C.channel)
        .order_by(func.min(_C.entered_at))
        .limit(_CHANNELS_MAX)
    )
    return {(row[0],): max(0, tx.now_ms - row[1]) / 1000 for row in tx.all(query)}


def _waiting(tx: Tx) -> metrics.Values:
    query = select(func.count()).select_from(tasks).where(_C.status == Status.TODO.value, readiness.waits)
    return float(tx.one(query)[0])


def _overdue(tx: Tx) -> metrics.Values:
    query = select(func.count()).select_from(tasks).where(_C.held.is_(True), _C.lease_expires_at < tx.now_ms)
    return float(tx.one(query)[0])


def _oldest_attempt(tx: Tx) -> metrics.Values:
    query = select(func.min(_C.started_at)).where(_C.status == Status.IN_PROGRESS.value, _C.runner.is_not(None))
    started_at = tx.one(query)[0]
    return 0.0 if started_at is None else max(0, tx.now_ms - started_at) / 1000


def _size(tx: Tx) -> metrics.Values:
    return float(tx.one(select(database_bytes()))[0])


_WORK: Final[dict[str, Callable[[Tx], metrics.Values]]] = {
    "dispatch_tasks": _by_status,
    "dispatch_queue_age_seconds": _age,
    "dispatch_waiting_tasks": _waiting,
    "dispatch_leases_overdue": _overdue,
    "dispatch_oldest_attempt_seconds": _oldest_attempt,
    "dispatch_database_bytes": _size,
}
