"""Deliveries: who is to be told that a task has ended, and how far that got."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the table. Tasks that ended before it have no deliveries."""
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=36), nullable=False, comment="the webhook-id; has no dots"),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False, comment="ATS word of how the task ended"),
        sa.Column("settled_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False, comment="waiting, delivered, failed or empty"),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("token", sa.BigInteger(), server_default="0", nullable=False, comment="+1 with every take"),
        sa.Column("due_at", sa.BigInteger(), nullable=False, comment="when it may be taken (again)"),
        sa.Column("taken_until", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.String(length=200), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_deliveries_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["state", "due_at"])
    op.create_index(op.f("ix_deliveries_task_id"), "deliveries", ["task_id"])


def downgrade() -> None:
    """Drop the table; what was not delivered yet is lost."""
    op.drop_table("deliveries")
