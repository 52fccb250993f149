"""Bundles in the database, part by part; up to which step a program has answered that it stays."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("trainers", schema=None) as batch_op:
        batch_op.add_column(sa.Column("leave_after", sa.Integer(), nullable=True))
    op.create_table(
        "bundles",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.Column("kept_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_bundles")),
    )
    op.create_table(
        "bundle_parts",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sha256"],
            ["bundles.sha256"],
            name=op.f("fk_bundle_parts_sha256"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("sha256", "part", name=op.f("pk_bundle_parts")),
    )


def downgrade() -> None:
    op.drop_table("bundle_parts")
    op.drop_table("bundles")
    with op.batch_alter_table("trainers", schema=None) as batch_op:
        batch_op.drop_column("leave_after")
