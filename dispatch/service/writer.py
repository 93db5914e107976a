"""Group commit: one thread runs whatever waits as one transaction, and answers after the commit.

Both stores are a ``GroupCommit``. They differ in how a transaction begins,
marks, ends and breaks, and in nothing else. The writer never waits for a batch
to fill: it takes what is there, at most ``batch_max`` requests.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError

from dispatch.errors import DispatchError, OverloadedError
from dispatch.log import get_logger
from dispatch.service import deliveries
from dispatch.service.events import Bus, Event
from dispatch.service.origin import ORIGIN
from dispatch.service.store import Tx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from dispatch.service.clock import Clock
    from dispatch.service.origin import Origin

T = TypeVar("T")

_QUEUE_MAX: Final = 4096

_log: Final = get_logger("service")


class _Job:
    """One request for the writer."""

    __slots__ = ("error", "events", "expires_ms", "future", "lines", "origin", "result", "work")

    def __init__(self, work: Callable[[Tx], Any], future: asyncio.Future[Any], origin: Origin | None) -> None:
        self.work = work
        self.future = future
        self.origin = origin
        self.result: Any = None
        self.error: BaseException | None = None
        self.events: list[Event] = []
        self.lines: list[dict[str, Any]] = []
        self.expires_ms: int | None = None

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.events = []
        self.expires_ms = None

    def settle(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class DatabaseAwayError(Exception):
    """There is no connection to the database, and none could be made."""


def refusal(cause: object, fate: str = "nothing was changed") -> OverloadedError:
    """Return what a request is told that the database could not serve."""
    return OverloadedError(f"The database cannot do it now ({cause}); {fate}, try again.")


class GroupCommit(ABC):
    """A store with one writer thread and a few readers. ``start`` and ``close`` belong to one event loop."""

    batch_max: ClassVar[int] = 64
    readers: ClassVar[int] = 2
    is_shared: ClassVar[bool] = False
    errors: ClassVar[tuple[type[Exception], ...]]
    """What the driver raises, called by itself and through SQLAlchemy."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.bus = Bus()
        self.is_alone = True
        self.on_lease: Callable[[int], None] = lambda _expires_ms: None
        self.on_committed: Callable[[Sequence[Event], Origin | None], None] | None = None
        self._closed = False
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(self.readers, "store-reader")
        self._writer: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop

    @abstractmethod
    def _open(self) -> None:
        """Open and migrate the database, set ``bus.last_seq``. Raises ConfigurationError, DatabaseUnavailableError."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close every connection; also what ``_open`` left half open."""

    @abstractmethod
    def _begin(self, *, mark: bool) -> tuple[Connection, int]:
        """Begin the writer's transaction, with a mark if told. Return its connection and the newest event's number."""

    @abstractmethod
    def _mark(self) -> None:
        """Keep what was done since the mark, and set the mark here."""

    @abstractmethod
    def _undo(self) -> None:
        """Undo what was done since the mark, which stays."""

    @abstractmethod
    def _append(self, lines: list[dict[str, Any]]) -> None:
        """Write rows of ``events``, one message to the database however many they are."""

    @abstractmethod
    def _commit(self, newest: int | None) -> None:
        """Make the transaction durable. ``newest`` is its last event, if it has any."""

    @abstractmethod
    def _rollback(self) -> None:
        """Undo the transaction."""

    @abstractmethod
    def _recover(self) -> bool:
        """End a transaction that broke, whatever its state. Say whether the connection was lost."""

    @abstractmethod
    def _read(self, work: Callable[[Tx], T]) -> T:
        """Run ``work`` on a snapshot, in a reader's thread. Raises OverloadedError."""

    def _is_outage(self, error: BaseException) -> bool:
        """Say whether an error is the database's condition, not the statement's mistake."""
        return not isinstance(error, IntegrityError)

    def _publish(self, events: list[Event], before: int) -> None:
        """Publish a committed batch, on the event loop. ``before`` is as ``_begin`` returned it."""
        del before
        self.bus.publish(events)

    async def start(self) -> None:
        """Open, lock and migrate the database. Raises ConfigurationError, DatabaseUnavailableError."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._writer = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self._writer.start()

    async def close(self) -> None:
        """Finish what waits, then close."""
        self._closed = True
        if self._writer is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._let_go)

    def write(self, work: Callable[[Tx], T]) -> asyncio.Future[T]:
        """Queue ``work`` for the writer; the future is done once the transaction is durable."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed or self._queue.qsize() >= _QUEUE_MAX:
            future.set_exception(OverloadedError("The service has too many requests waiting; try again."))
        else:
            self._queue.put(_Job(work, future, ORIGIN.get() if self.on_committed is not None else None))
        return future

    def read(self, work: Callable[[Tx], T]) -> asyncio.Future[T]:
        """Run ``work`` on a reader's snapshot."""
        return self._loop.run_in_executor(self._readers, self._read, work)

    def _write_all(self) -> None:
        """Run batches until told to stop: the writer thread."""
        while (job := self._queue.get()) is not None:
            jobs = [job]
            more = self._take(jobs, self.batch_max)
            before = self._run_batch(jobs)
            self._loop.call_soon_threadsafe(self._finish, jobs, before)
            if not more:
                return

    def _take(self, jobs: list[_Job], limit: int) -> bool:
        """Add what waits to ``jobs``, up to ``limit``; return False when told to stop."""
        while len(jobs) < limit:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return True
            if job is None:
                return False
            jobs.append(job)
        return True

    def _finish(self, jobs: list[_Job], before: int) -> None:
        """Answer a committed batch and publish what happened, on the event loop."""
        for job in jobs:
            if job.expires_ms is not None:
                self.on_lease(job.expires_ms)
            job.settle()
        self._publish([event for job in jobs for event in job.events], before)
        if self.on_committed is not None:
            for job in jobs:
                self.on_committed(job.events, job.origin)

    def _run_batch(self, jobs: list[_Job]) -> int:
        """Run every job in one transaction; every one of them then has its result or its error."""
        committing = False
        try:
            connection, before = self._begin(mark=len(jobs) > 1)
            self._run_jobs(connection, jobs)
            if all(job.error is not None for job in jobs):
                self._rollback()
            else:
                newest = _number(jobs, before)
                if newest > before:
                    self._append([line for job in jobs for line in job.lines])
                committing = True
                self._commit(newest if newest > before else None)
        except DatabaseAwayError as exc:
            # Whoever waits would only wait for one more connection that cannot be made.
            if not self._take(jobs, _QUEUE_MAX):
                self._queue.put(None)
            self._fail(jobs, refusal(exc))
        except self.errors as exc:
            cause = reason_of(exc)
            if self._recover() and committing:
                fate = "the connection was lost while it was being committed, so it may or may not have been done"
                self._fail(jobs, refusal(cause, fate))
            else:
                self._fail(jobs, refusal(cause))
        else:
            return before
        return 0

    def _run_jobs(self, connection: Connection, jobs: list[_Job]) -> None:
        """Run the jobs, each from a mark, so that its failure undoes only itself. A single job needs none."""
        for number, job in enumerate(jobs, 1):
            self._run_one(connection, job)
            if len(jobs) > 1:
                if job.error is not None:
                    self._undo()
                elif number < len(jobs):
                    self._mark()

    def _run_one(self, connection: Connection, job: _Job) -> None:
        """Run one job; it then has its result or its error. Raises the database's outages."""
        tx = Tx(connection, self.clock.now_ms())
        try:
            job.result = job.work(tx)
            deliveries.open_for(tx)
            job.events, job.lines = tx.events, tx.lines
            job.expires_ms = tx.first_expiry_ms
        except DispatchError as exc:
            job.error = exc
        except DBAPIError as exc:
            if self._is_outage(exc):
                raise
            job.error = exc
        except self.errors:
            raise
        except Exception as exc:  # noqa: BLE001 - a mistake in one request must not end the writer
            job.error = exc

    def _fail(self, jobs: list[_Job], error: OverloadedError) -> None:
        _log.warning("store_unavailable", error=str(error), requests=len(jobs))
        for job in jobs:
            job.fail(OverloadedError(str(error)))


def _number(jobs: list[_Job], newest: int) -> int:
    """Number the events of the jobs after ``newest``, and return the last number."""
    for job in jobs:
        if job.error is None:
            for event, line in zip(job.events, job.lines, strict=True):
                newest += 1
                event.seq = line["seq"] = newest
    return newest


def reason_of(error: BaseException) -> str:
    """Return the first line of what the database said."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
