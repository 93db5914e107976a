"""Sealed tasks: a mark on them, and the register of their messages."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the mark, set it on what there is, and add the register."""
    op.add_column(
        "tasks",
        sa.Column(
            "sealed",
            sa.Boolean(),
            server_default=sa.false(),
            nullable=False,
            comment="the payload says that it is sealed",
        ),
    )
    tasks = sa.table("tasks", sa.column("id"), sa.column("payload"), sa.column("sealed", sa.Boolean()))
    bind = op.get_bind()
    maybe = sa.select(tasks.c.id, tasks.c.payload).where(tasks.c.payload.contains('"encrypted"'))
    for ident, payload in bind.execute(maybe).all():
        said = json.loads(payload)
        if isinstance(said, dict) and said.get("encrypted"):
            bind.execute(sa.update(tasks).where(tasks.c.id == ident).values(sealed=True))
    op.create_table(
        "sealed_messages",
        sa.Column("digest", sa.String(length=64), nullable=False, comment="names a sealed message for good"),
        sa.Column("task_id", _ID, nullable=False, comment="the one task that it may be the content of"),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_sealed_messages_task_id_tasks")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_sealed_messages")),
    )


def downgrade() -> None:
    """Drop what was added; which messages were seen is lost."""
    op.drop_table("sealed_messages")
    op.drop_column("tasks", "sealed")
