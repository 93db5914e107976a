"""Looking up API keys on SQLite, as they are at this moment, from the event loop.

A read of one row by its primary key from the page cache takes some ten
microseconds, less than handing it to a thread. Readers of a WAL never wait for
the writer.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from dispatch.errors import OverloadedError
from dispatch.service.keys import COLUMNS, Key

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

_SELECT_KEY: Final = f"SELECT {', '.join(column.name for column in COLUMNS)} FROM api_keys WHERE id = ?"  # noqa: S608
_SELECT_ANY: Final = "SELECT 1 FROM api_keys LIMIT 1"
_BUSY_MS: Final = 20
"""The event loop waits; it must not wait for long."""


class SqliteKeys:
    """A connection that reads keys only. ``open`` when the tables are there; used by one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._has_keys = False

    def open(self) -> None:
        """Connect. Raises sqlite3.Error."""
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        connection.execute("PRAGMA query_only=ON")
        self._connection = connection

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def key(self, key_id: str) -> Key | None:
        """Return a key as it is now. Raises OverloadedError."""
        rows = self._all(_SELECT_KEY, (key_id,))
        return Key(*rows[0]) if rows else None

    def has_keys(self) -> bool:
        """Say whether a key was ever made; once that was so it stays so. Raises OverloadedError."""
        if not self._has_keys:
            self._has_keys = bool(self._all(_SELECT_ANY, ()))
        return self._has_keys

    def _all(self, sql: str, values: tuple[str, ...]) -> list[Any]:
        if self._connection is None:
            raise OverloadedError("The service is about to stop or has not begun; try again.")
        try:
            # To the last row: an unfinished read would hold on to an old snapshot.
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise OverloadedError(f"The database cannot do it now ({exc}); nothing was changed, try again.") from exc
