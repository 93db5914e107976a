"""Schema migrations, run by the service itself when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import inspect

if TYPE_CHECKING:
    from sqlalchemy import Connection

_HERE: Final = Path(__file__).parent


def newest() -> str:
    """Return the newest revision: the number that the file of each begins with."""
    return max(path.name for path in (_HERE / "versions").glob("[0-9]*_*.py")).partition("_")[0]


def is_current(connection: Connection) -> bool:
    """Say whether the database has the newest schema."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    return list(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()) == [newest()]


def migrate(connection: Connection) -> None:
    """Bring the database behind ``connection`` to the newest schema. The caller commits."""
    if is_current(connection):
        return
    # Loading it takes longer than all the rest of a start on a database that is current.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_HERE))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
