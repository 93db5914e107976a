"""The migrations and the tables in the code are the same schema, on each database."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from dispatch.service.migrations import migrate
from dispatch.service.schema import metadata
from tests.support.postgres import shared_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection


@contextmanager
def _sqlite() -> Iterator[Connection]:
    with create_engine("sqlite://").connect() as connection:
        yield connection


@contextmanager
def _postgresql() -> Iterator[Connection]:
    url = shared_server().url(shared_server().empty_database())
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


@pytest.fixture(params=[_sqlite, _postgresql])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection to an empty database."""
    with request.param() as connection:
        yield connection


def test_migrations_build_exactly_the_schema(connection: Connection) -> None:
    """A database that was migrated from nothing differs from the tables of the code in nothing."""
    migrate(connection)
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True, "render_as_batch": True}
    )
    assert compare_metadata(context, metadata) == []


def _described(connection: Connection) -> str:
    found = inspect(connection)
    tables = [
        (name, found.get_columns(name), found.get_indexes(name), found.get_foreign_keys(name))
        for name in found.get_table_names()
    ]
    # Expressions show their address, which is another one every time.
    return re.sub("0x[0-9a-f]+", "", repr(tables))


def test_migrating_twice_changes_nothing(connection: Connection) -> None:
    """Every start of the service migrates; the second time there is nothing to do."""
    migrate(connection)
    before = _described(connection)
    migrate(connection)
    assert _described(connection) == before
