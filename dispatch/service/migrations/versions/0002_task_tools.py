"""What the Task Tools need: places in lists, locks that yield, needs, idempotency keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LAST = "1.7976931348623157e308"


def upgrade() -> None:
    """Add columns and tables; what there is stands last in its list and got its status when it was changed last."""
    op.add_column(
        "tasks",
        sa.Column("position", sa.Double(), server_default=_LAST, nullable=False, comment="order_index, or last"),
    )
    op.add_column("tasks", sa.Column("held_since", sa.BigInteger(), nullable=True))
    op.add_column(
        "tasks",
        sa.Column(
            "yields",
            sa.Boolean(),
            server_default=sa.false(),
            nullable=False,
            comment="the lock gives way to a reviewer",
        ),
    )
    op.add_column(
        "tasks",
        sa.Column("entered_at", sa.BigInteger(), server_default="0", nullable=False, comment="when it got its status"),
    )
    op.execute("UPDATE tasks SET entered_at = updated_at, held_since = CASE WHEN held THEN updated_at END")
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("tasks", "assigned_to", comment="the agent that it is kept for")
    op.drop_index("ix_tasks_project_id_tasks_status", table_name="tasks")
    order = sa.text("priority DESC")
    op.create_index("ix_tasks_list", "tasks", ["project_id", "status", "position", order, "id"])
    op.create_index("ix_tasks_next", "tasks", ["status", "project_id", order, "position", "id"])
    op.drop_index("ix_tasks_status_tasks_channel_tasks_priority_tasks_id", table_name="tasks")
    op.create_index("ix_tasks_channel", "tasks", ["status", "channel", order, "id"])
    op.create_index("ix_tasks_status", "tasks", ["status", "id"])
    op.create_index("ix_tasks_assigned", "tasks", ["assigned_to", "status"])
    op.create_table(
        "task_needs",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False, comment="a capability that whoever does it must have"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_needs_task_id_tasks")),
        sa.PrimaryKeyConstraint("task_id", "name", name=op.f("pk_task_needs")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.String(length=300), nullable=False, comment="what the key is for, and whose it is"),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False, comment="of the request that used it first"),
        sa.Column("answer_id", _ID, nullable=False, comment="the task or message that it made"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "listeners",
        sa.Column("process", sa.String(length=64), nullable=False, comment="a process of the service"),
        sa.Column("channel", sa.String(length=128), nullable=False, comment="empty for those that listen to all"),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("process", "channel", name=op.f("pk_listeners")),
    )
