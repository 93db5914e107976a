"""Alembic's entry: runs the migrations on the connection that the service hands over."""

from __future__ import annotations

from alembic import context

from dispatch.service.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,
    render_as_batch=True,
)
context.run_migrations()
