"""The migrations and the tables in the code are the same schema."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from dispatch.service.migrations import migrate
from dispatch.service.schema import metadata


def test_migrations_build_exactly_the_schema() -> None:
    """A database that was migrated from nothing differs from the tables of the code in nothing."""
    with create_engine("sqlite://").connect() as connection:
        migrate(connection)
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "render_as_batch": True}
        )
        assert compare_metadata(context, metadata) == []


def test_migrating_twice_changes_nothing() -> None:
    """Every start of the service migrates; the second time there is nothing to do."""
    with create_engine("sqlite://").connect() as connection:
        migrate(connection)
        before = connection.execute(text("select name, sql from sqlite_master order by name")).all()
        migrate(connection)
        assert connection.execute(text("select name, sql from sqlite_master order by name")).all() == before


def test_the_schema_can_be_written_for_postgresql() -> None:
    """Nothing in the tables is SQLite's alone."""
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
