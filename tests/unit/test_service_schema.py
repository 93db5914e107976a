"""The migrations and the tables in the code are the same schema, on each database."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, inspect, text
from sqlalchemy.pool import NullPool

from dispatch.service import migrations
from dispatch.service.migrations import migrate
from dispatch.service.schema import metadata
from tests.support.postgres import shared_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

_TIMES = {"created_at": 0, "updated_at": 0}


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


def test_the_newest_is_what_alembic_takes_for_it() -> None:
    """There is one line of migrations, and the number in the name of its last file is the head."""
    assert ScriptDirectory(str(Path(migrations.__file__).parent)).get_heads() == [migrations.newest()]


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


def _add_tasks(connection: Connection, payloads: Mapping[int, str | None]) -> None:
    """Add tasks, number -> payload, to a database of whatever version."""
    connection.execute(insert(metadata.tables["organizations"]).values(id=9, slug="o", name="O", **_TIMES))
    connection.execute(
        insert(metadata.tables["projects"]).values(id=9, organization_id=9, slug="p", name="P", **_TIMES)
    )
    rows = text(
        "INSERT INTO tasks (id, uuid, project_id, title, type, channel, priority, status, payload,"
        " source_type, source_id, source_name, created_at, updated_at)"
        " VALUES (:id, :uuid, 9, 't', 't', 'c', 5, 'todo', :payload, 'agent', 'a', 'a', 0, 0)"
    )
    for ident, payload in payloads.items():
        connection.execute(rows, {"id": ident, "uuid": f"u{ident}", "payload": payload})


def test_sealed_tasks_from_before_are_marked(connection: Connection) -> None:
    """A database from before the mark: what says that it is sealed has it afterwards, and nothing else."""
    migrate(connection)
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    payloads = ['{"encrypted":true}', '{"encrypted":false}', '{"a":{"encrypted":true}}', '["encrypted"]', None]
    with Operations.context(MigrationContext.configure(connection)):
        scripts.get_revision("0006").module.downgrade()
        _add_tasks(connection, dict(enumerate(payloads, 1)))
        scripts.get_revision("0006").module.upgrade()
    marks = connection.exec_driver_sql("SELECT sealed FROM tasks ORDER BY id").all()
    assert [bool(row[0]) for row in marks] == [True, False, False, False, False]


def test_what_tasks_depended_on_before_is_shown(connection: Connection) -> None:
    """A database from before the column shows the edges that it has, and nothing for tasks without any."""
    migrate(connection)
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    with Operations.context(MigrationContext.configure(connection)):
        scripts.get_revision("0004").module.downgrade()
        _add_tasks(connection, {1: None, 2: None, 3: None})
        edges = insert(metadata.tables["task_dependencies"])
        connection.execute(edges, [{"task_id": 3, "depends_on_id": ident} for ident in (1, 2)])
        scripts.get_revision("0004").module.upgrade()
    shown = connection.exec_driver_sql("SELECT id, depends_on FROM tasks ORDER BY id").all()
    assert [(row[0], row[1] and sorted(json.loads(row[1]))) for row in shown] == [(1, None), (2, None), (3, [1, 2])]


def test_the_register_from_before_is_kept_and_outlives_its_tasks(connection: Connection) -> None:
    """A database from before retention keeps its register of sealed messages, whose tasks may go from then on."""
    migrate(connection)
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    with Operations.context(MigrationContext.configure(connection)):
        scripts.get_revision("0009").module.downgrade()
        _add_tasks(connection, {1: None})
        connection.execute(insert(metadata.tables["sealed_messages"]).values(digest="d", task_id=1, seen_at=0))
        scripts.get_revision("0009").module.upgrade()
    connection.exec_driver_sql("DELETE FROM tasks")
    assert connection.exec_driver_sql("SELECT digest, task_id FROM sealed_messages").all() == [("d", 1)]


def test_every_foreign_key_to_tasks_and_messages_is_found_by_an_index() -> None:
    """Removing a row looks for those that refer to it; without an index that reads a whole table for each row."""
    for table in metadata.sorted_tables:
        first = {next(iter(index.columns)).name for index in table.indexes} | {next(iter(table.primary_key)).name}
        for key in table.foreign_keys:
            if key.column.table.name in ("tasks", "messages"):
                assert key.parent.name in first, f"{table.name}.{key.parent.name}"
