"""Which failures to open a database pass by themselves, and which an operator must mend."""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING

import pytest

from dispatch.errors import ConfigurationError, DatabaseUnavailableError
from dispatch.service.opening import postgres_refusal, sqlite_refusal
from dispatch.service.writer import DatabaseAwayError

if TYPE_CHECKING:
    from pathlib import Path


def _sqlite_error(path: Path, statement: str) -> sqlite3.Error:
    """Return what SQLite raises for a statement."""
    connection = sqlite3.connect(path)
    try:
        with pytest.raises(sqlite3.Error) as caught:
            connection.executescript(statement)
    finally:
        connection.close()
    return caught.value


def test_a_full_disk_passes(tmp_path: Path) -> None:
    """A file that may not grow, as on a full disk, and no room for a new file: try again, exit 69."""
    full = _sqlite_error(tmp_path / "full", "PRAGMA max_page_count=2; CREATE TABLE a (x); CREATE TABLE b (x)")
    for exc in (full, OSError(errno.ENOSPC, "No space left on device")):
        found = sqlite_refusal("tasks.db", exc)
        assert isinstance(found, DatabaseUnavailableError)
        assert "make room" in str(found)


def test_a_file_that_is_none_does_not_pass(tmp_path: Path) -> None:
    """A file of another kind and a directory that may not be written stay so: exit 78."""
    (tmp_path / "other").write_text("no database " * 200)
    foreign = _sqlite_error(tmp_path / "other", "CREATE TABLE a (x)")
    for exc in (foreign, PermissionError(errno.EACCES, "Permission denied", "/x/tasks.db.lock")):
        found = sqlite_refusal("tasks.db", exc)
        assert isinstance(found, ConfigurationError)
        assert "Errno" not in str(found)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ('connection failed: connection to server at "10.0.0.9", port 5432 failed: Connection refused', 69),
        ("connection failed: FATAL:  the database system is starting up", 69),
        ("connection failed: FATAL:  sorry, too many clients already", 69),
        ("connection timeout expired", 69),
        ('connection failed: FATAL:  password authentication failed for user "dispatch"', 78),
        ('connection failed: FATAL:  database "dispatch" does not exist', 78),
        ("connection failed: fe_sendauth: no password supplied", 78),
        ('connection failed: FATAL:  no pg_hba.conf entry for host "10.0.0.1"', 78),
    ],
)
def test_postgresql_that_is_away_passes_and_one_that_refuses_does_not(reason: str, kind: int) -> None:
    """A server that is down, starts or is crowded: try again; one that knows us and says no: a setting is wrong."""
    assert postgres_refusal("x@y", DatabaseAwayError(reason), is_away=True).exit_code == kind


def test_a_database_without_our_rights_is_a_wrong_setting() -> None:
    """What the server answers to a statement, and not its absence, must be mended by somebody."""
    found = postgres_refusal("x@y", RuntimeError("must be owner of table tasks"), is_away=False)
    assert isinstance(found, ConfigurationError)
