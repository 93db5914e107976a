"""Dependencies on the ATS face: what each task names, and names that no task has yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the column, filled from the edges there are, and the table of names."""
    op.add_column(
        "tasks",
        sa.Column("depends_on", sa.Text(), nullable=True, comment="JSON: what it depends on, as clients see it"),
    )
    joined = "group_concat(depends_on_id, ',')"
    if op.get_bind().dialect.name == "postgresql":
        joined = "string_agg(CAST(depends_on_id AS text), ',' ORDER BY depends_on_id)"
    op.execute(
        f"UPDATE tasks SET depends_on = '[' || (SELECT {joined} FROM task_dependencies WHERE task_id = tasks.id) || ']'"  # noqa: S608 - constants
        " WHERE id IN (SELECT task_id FROM task_dependencies)"
    )
    op.create_table(
        "missing_dependencies",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False, comment="what no task of the project is called"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_missing_dependencies_task_id_tasks")),
        sa.PrimaryKeyConstraint("task_id", "name", name=op.f("pk_missing_dependencies")),
    )
    op.create_index(op.f("ix_missing_dependencies_name"), "missing_dependencies", ["name"])


def downgrade() -> None:
    """Drop what was added; names that no task has are lost."""
    op.drop_table("missing_dependencies")
    op.drop_column("tasks", "depends_on")
