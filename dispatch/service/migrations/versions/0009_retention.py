"""Retention: how far removing has come, indexes for it, and a register of sealed messages that outlives tasks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INDEXES = (
    ("ix_tasks_ended", "tasks", ["completed_at", "id"], "completed_at IS NOT NULL"),
    ("ix_events_message_id", "events", ["message_id"], "message_id IS NOT NULL"),
    ("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], "substr(scope, 1, 8) <> 'task_id:'"),
)
_TO_TASK = "fk_sealed_messages_task_id_tasks"


def upgrade() -> None:
    """Add the table and the indexes, and free the register from the tasks."""
    op.create_table(
        "pruning",
        sa.Column("name", sa.String(length=32), nullable=False, comment="a kind of rows that are removed; turn; gap"),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("number", _ID, nullable=False),
        sa.Column("by", sa.String(length=64), nullable=True, comment="the process of the service whose turn it is"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pruning")),
    )
    for name, table, columns, where in _INDEXES:
        op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    with op.batch_alter_table("sealed_messages") as batch:
        batch.drop_constraint(_TO_TASK, type_="foreignkey")


def downgrade() -> None:
    """Drop what was added; sealed messages whose tasks were removed are forgotten."""
    op.execute("DELETE FROM sealed_messages WHERE task_id NOT IN (SELECT id FROM tasks)")
    with op.batch_alter_table("sealed_messages") as batch:
        batch.create_foreign_key(_TO_TASK, "tasks", ["task_id"], ["id"])
    for name, table, _, _ in reversed(_INDEXES):
        op.drop_index(name, table_name=table)
    op.drop_table("pruning")
