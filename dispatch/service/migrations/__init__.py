"""Schema migrations, run by the service itself when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from sqlalchemy import Connection


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def is_current(connection: Connection) -> bool:
    """Say whether the database has the newest schema."""
    found = set(MigrationContext.configure(connection).get_current_heads())
    return found == set(ScriptDirectory.from_config(_config()).get_heads())


def migrate(connection: Connection) -> None:
    """Bring the database behind ``connection`` to the newest schema. The caller commits."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
