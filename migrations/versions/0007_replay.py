"""How far an attempt trains steps again, and where they come out otherwise."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('replays_through', sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column('replay_differs_step', sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column('replay_differs', sa.Text(), nullable=True))
        batch_op.add_column(sa.Column('replay_told_at', sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('attempts', schema=None) as batch_op:
        for name in ("replay_told_at", "replay_differs", "replay_differs_step", "replays_through"):
            batch_op.drop_column(name)
