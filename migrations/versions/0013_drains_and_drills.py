"""Hosts that runs are to leave, and what was killed of an attempt on purpose."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "drains",
        sa.Column("provider", sa.String(length=40), nullable=False),
        sa.Column("host", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.String(length=80), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("provider", "host", name=op.f("pk_drains")),
    )
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("drill", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("drill_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("drill_by", sa.String(length=80), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_column("drill_by")
        batch_op.drop_column("drill_at")
        batch_op.drop_column("drill")
    op.drop_table("drains")
