"""Steering: what an operator has paused or drained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "steering",
        sa.Column("kind", sa.String(length=8), nullable=False, comment="channel, queue or host"),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("note", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("by", sa.String(length=255), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_steering")),
    )


def downgrade() -> None:
    """Drop the table; what was paused runs again."""
    op.drop_table("steering")
