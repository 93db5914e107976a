"""A SQLite file with the schema, migrated once and copied: migrating takes longer than most tests that need one."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from sqlalchemy import create_engine

from dispatch.service.migrations import migrate


@functools.cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory(prefix="dispatch-") as directory:
        file = Path(directory) / "tasks.db"
        engine = create_engine(f"sqlite:///{file}")
        with engine.begin() as connection:
            migrate(connection)
        engine.dispose()
        return file.read_bytes()


def put_database(data_dir: Path) -> None:
    """Put the database of a service with no tasks where it looks for it, unless one is there."""
    file = data_dir / "tasks.db"
    if not file.exists():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(_template())
