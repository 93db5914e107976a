"""Traits: the short plain values of a payload, by which an executor decides where a task goes."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from dispatch.core.routing import traits_of

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and set it on what is not finished."""
    op.add_column("tasks", sa.Column("traits", sa.Text(), nullable=True, comment="short plain values of the payload"))
    tasks = sa.table(
        "tasks", sa.column("id"), sa.column("payload"), sa.column("completed_at"), sa.column("traits", sa.Text())
    )
    bind = op.get_bind()
    open_ones = sa.select(tasks.c.id, tasks.c.payload).where(
        tasks.c.payload.is_not(None), tasks.c.completed_at.is_(None)
    )
    for ident, payload in bind.execute(open_ones).all():
        if traits := traits_of(json.loads(payload)):
            text = json.dumps(traits, ensure_ascii=False, separators=(",", ":"))
            bind.execute(sa.update(tasks).where(tasks.c.id == ident).values(traits=text))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("tasks", "traits")
