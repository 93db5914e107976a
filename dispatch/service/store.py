"""What the use cases need of a database, whichever it is.

A use case is a synchronous function of a ``Tx``; the store runs it as one
transaction and, after the commit, publishes what it emitted. There are
``SqliteStore`` (``sqlite.py``) and ``PostgresStore`` (``postgres.py``), both
on the group commit of ``writer.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from dispatch.service.events import Bus, Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sqlalchemy import Connection, Executable

    from dispatch.ats.model import Actor
    from dispatch.service.clock import Clock
    from dispatch.service.keys import Key
    from dispatch.service.origin import Origin

T = TypeVar("T")


class Tx:
    """One transaction as a use case sees it: statements, the time, and what happened."""

    __slots__ = ("_connection", "events", "first_expiry_ms", "lines", "now_ms")

    def __init__(self, connection: Connection, now_ms: int) -> None:
        self._connection = connection
        self.now_ms = now_ms
        self.events: list[Event] = []
        self.lines: list[dict[str, Any]] = []
        """The rows of ``events``, one for one."""
        self.first_expiry_ms: int | None = None

    def one(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        """Run a statement and return its first row, or None."""
        return self._connection.execute(statement, values).first()

    def all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Run a statement and return all its rows."""
        return self._connection.execute(statement, values).all()

    def run(self, statement: Executable, values: Mapping[str, Any] | None = None) -> int:
        """Run a statement and return how many rows it changed."""
        return self._connection.execute(statement, values).rowcount

    def leased_until(self, expires_ms: int) -> None:
        """Note that a lease was granted or extended, for whoever takes leases back."""
        if self.first_expiry_ms is None or expires_ms < self.first_expiry_ms:
            self.first_expiry_ms = expires_ms

    def emit(
        self,
        kind: str,
        task: Any,
        actor: Actor,
        *,
        moved: tuple[str | None, str] | None = None,
        note: str | None = None,
        message: tuple[int, str] | None = None,
    ) -> None:
        """Append to the event log: ``moved`` is (from, to), ``message`` is (id, JSON).

        The store numbers and writes the events of a whole commit at its end; until then they are not in the table.
        """
        came, went = moved or (None, None)
        self.lines.append(
            {
                "type": kind,
                "task_id": task.id,
                "from_status": came,
                "to_status": went,
                "note": note,
                "actor_type": actor.type,
                "actor_id": actor.id,
                "actor_name": actor.name,
                "token": task.fencing_token,
                "message_id": message[0] if message else None,
                "created_at": self.now_ms,
            }
        )
        self.events.append(Event(0, kind, task, actor.id, actor.name, self.now_ms, message[1] if message else None))


class Store(Protocol):
    """A database that runs use cases."""

    bus: Bus
    clock: Clock
    is_shared: ClassVar[bool]
    """Whether other processes may use the database, and grant leases, of which ``on_lease`` does not tell."""
    is_alone: bool
    """After ``start``: whether no other service had the database open, so that nobody can have renewed."""
    on_lease: Callable[[int], None]
    """Called on the event loop with the expiry of leases that were just granted or extended by this process."""
    on_committed: Callable[[Sequence[Event], Origin | None], None] | None
    """Called on the event loop with the events of each request of this process, and where that came from."""

    def write(self, work: Callable[[Tx], T]) -> Awaitable[T]:
        """Run ``work`` as one transaction and return its result once it is durable.

        Raises what ``work`` raises, with nothing changed, and OverloadedError
        when the database cannot do it now; its sentence says so when the
        connection was lost in the very moment of the commit.
        """
        ...

    def read(self, work: Callable[[Tx], T]) -> Awaitable[T]:
        """Run ``work``, which must not write, on a snapshot. Raises as ``write`` does."""
        ...

    async def key(self, key_id: str) -> Key | None:
        """Return the API key with this public id as it is now, or None. Raises OverloadedError."""
        ...

    async def has_keys(self) -> bool:
        """Say whether an API key was ever made: then every caller needs one. Raises OverloadedError."""
        ...

    async def start(self) -> None:
        """Open the database, migrate it, take hold of it. Raises ConfigurationError, DatabaseUnavailableError."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then let go of the database."""
        ...
