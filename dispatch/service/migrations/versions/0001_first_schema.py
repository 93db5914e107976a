"""The first schema: organisations, projects, tasks, dependencies, messages, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "organizations",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("slug", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
        sa.UniqueConstraint("slug", name=op.f("uq_organizations_slug")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "projects",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("organization_id", _ID, nullable=False),
        sa.Column("slug", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_projects_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("organization_id", "slug", name=op.f("uq_projects_organization_id_slug")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tasks",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("parent_id", _ID, nullable=True),
        sa.Column("run_id", sa.String(length=36), nullable=True),
        sa.Column("order_index", sa.Double(), nullable=True),
        sa.Column("assigned_to", sa.String(length=36), nullable=True, comment="the agent that should do it, a wish"),
        sa.Column("title", sa.String(length=512), nullable=False),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("type", sa.String(length=128), nullable=False),
        sa.Column("channel", sa.String(length=128), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False, comment="1 to 10, 10 is most urgent"),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("needs_review", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True, comment="JSON"),
        sa.Column("outputs", sa.Text(), nullable=True, comment="JSON"),
        sa.Column("meta_json", sa.Text(), nullable=True, comment="JSON"),
        sa.Column("source_type", sa.String(length=16), nullable=False),
        sa.Column("source_id", sa.String(length=255), nullable=False),
        sa.Column("source_name", sa.String(length=255), nullable=False),
        sa.Column("held", sa.Boolean(), server_default=sa.false(), nullable=False, comment="the holder's lock is live"),
        sa.Column("holder_type", sa.String(length=16), nullable=True),
        sa.Column(
            "holder_id", sa.String(length=255), nullable=True, comment="who holds it, or held it when it finished"
        ),
        sa.Column("holder_name", sa.String(length=255), nullable=True),
        sa.Column("fencing_token", sa.BigInteger(), server_default="0", nullable=False, comment="+1 with every grant"),
        sa.Column("claim_id", sa.String(length=255), nullable=True, comment="names one try to claim"),
        sa.Column("runner", sa.String(length=255), nullable=True, comment="the worker that started the attempt"),
        sa.Column("lease_ms", sa.BigInteger(), nullable=True, comment="length of the last grant"),
        sa.Column("lease_expires_at", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_losses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column("result_hash", sa.String(length=64), nullable=True, comment="of the report that ended the attempt"),
        sa.Column("reason", sa.Text(), nullable=True, comment="of the last failure or release"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["parent_id"], ["tasks.id"], name=op.f("fk_tasks_parent_id_tasks")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_tasks_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("uuid", name=op.f("uq_tasks_uuid")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_tasks_held_tasks_lease_expires_at"), "tasks", ["held", "lease_expires_at"], unique=False)
    op.create_index(op.f("ix_tasks_parent_id"), "tasks", ["parent_id"], unique=False)
    op.create_index(op.f("ix_tasks_project_id_tasks_status"), "tasks", ["project_id", "status"], unique=False)
    op.create_index(
        op.f("ix_tasks_status_tasks_channel_tasks_priority_tasks_id"),
        "tasks",
        ["status", "channel", "priority", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_tasks_updated_at"), "tasks", ["updated_at"], unique=False)
    op.create_table(
        "messages",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("actor_type", sa.String(length=16), nullable=False),
        sa.Column("actor_id", sa.String(length=255), nullable=False),
        sa.Column("actor_name", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), server_default="message", nullable=False),
        sa.Column("tags", sa.Text(), nullable=True, comment="JSON"),
        sa.Column("meta", sa.Text(), nullable=True, comment="JSON"),
        sa.Column("parts", sa.Text(), nullable=False, comment="JSON"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_messages_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_messages_task_id_messages_id"), "messages", ["task_id", "id"], unique=False)
    op.create_table(
        "task_dependencies",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("depends_on_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["depends_on_id"], ["tasks.id"], name=op.f("fk_task_dependencies_depends_on_id_tasks")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_dependencies_task_id_tasks")),
        sa.PrimaryKeyConstraint("task_id", "depends_on_id", name=op.f("pk_task_dependencies")),
    )
    op.create_index(op.f("ix_task_dependencies_depends_on_id"), "task_dependencies", ["depends_on_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("seq", _ID, autoincrement=True, nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("from_status", sa.String(length=16), nullable=True),
        sa.Column("to_status", sa.String(length=16), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("actor_type", sa.String(length=16), nullable=False),
        sa.Column("actor_id", sa.String(length=255), nullable=False),
        sa.Column("actor_name", sa.String(length=255), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=True, comment="the fencing token under which it happened"),
        sa.Column("message_id", _ID, nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["message_id"], ["messages.id"], name=op.f("fk_events_message_id_messages")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_events_task_id_tasks")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_task_id_events_seq"), "events", ["task_id", "seq"], unique=False)


def downgrade() -> None:
    """Drop every table."""
    for table in ("events", "messages", "task_dependencies", "tasks", "projects", "organizations"):
        op.drop_table(table)
