"""How fast each process trains, and what is slow about it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

OF_TRAINERS = ("pace_seconds", "pace_own", "pace_data_wait")


def upgrade() -> None:
    with op.batch_alter_table('trainers', schema=None) as batch_op:
        batch_op.add_column(sa.Column('pace_at', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('pace_step', sa.Integer(), nullable=True))
        for name in OF_TRAINERS:
            batch_op.add_column(sa.Column(name, sa.Float(precision=53), nullable=True))
        batch_op.add_column(sa.Column('slow_why', sa.Text(), nullable=True))
    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.add_column(
            sa.Column('best_pace_seconds', sa.Float(precision=53), nullable=True)
        )
        batch_op.add_column(sa.Column('slow_why', sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('attempts', schema=None) as batch_op:
        for name in ("slow_why", "best_pace_seconds"):
            batch_op.drop_column(name)
    with op.batch_alter_table('trainers', schema=None) as batch_op:
        for name in ("slow_why", *reversed(OF_TRAINERS), "pace_step", "pace_at"):
            batch_op.drop_column(name)
