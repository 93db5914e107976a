"""A database could not be opened: is it away for the moment, or must an operator change something?

The exit code depends on it, and on that whether systemd starts the service
again: after a reboot the database may come later than the service, and a full
disk gets room again.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from dispatch.errors import ConfigurationError, DatabaseUnavailableError
from dispatch.service.writer import reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from dispatch.errors import DispatchError

_PASSING: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM}
)
_PASSING_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
# What a server says to somebody who is wrong, and will be wrong again. libpq has no code for it.
_REFUSED: Final = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "pg_hba.conf",
    "permission denied",
    "not permitted",
    "does not support SSL",
)


def sqlite_refusal(path: Path | str, exc: BaseException) -> DispatchError:
    """Return what to raise for a SQLite file that could not be opened or used."""
    cause = exc.orig if isinstance(exc, DBAPIError) else exc
    if isinstance(cause, sqlite3.Error):
        # The low byte is the kind, the rest says more about it.
        passes = (getattr(cause, "sqlite_errorcode", None) or 0) & 0xFF in _PASSING
    else:
        passes = isinstance(cause, OSError) and cause.errno in _PASSING_ERRNOS
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else reason_of(exc)
    sentence = f"The database {path} cannot be opened: {reason}."
    if passes:
        return DatabaseUnavailableError(f"{sentence} If its disk is full, make room.")
    return ConfigurationError(f"{sentence} Set DISPATCH_DATABASE_URL or DISPATCH_DATA_DIR.")


def postgres_refusal(where: str, exc: BaseException, *, is_away: bool) -> DispatchError:
    """Return what to raise for a PostgreSQL database; ``is_away`` says that its server broke off or did not answer."""
    reason = reason_of(exc)
    if is_away and not any(words in reason for words in _REFUSED):
        return DatabaseUnavailableError(
            f"The PostgreSQL database {where} does not answer: {reason}. Start it, or set DISPATCH_DATABASE_URL."
        )
    return ConfigurationError(f"The PostgreSQL database {where} cannot be opened: {reason}. Set DISPATCH_DATABASE_URL.")
