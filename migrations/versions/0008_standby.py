"""Where the spare trainers of a gang meet, and which of them stand ready."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('hosts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('standby', sa.String(length=100), nullable=True))
        batch_op.add_column(
            sa.Column('standby_ready', sa.Boolean(), server_default=sa.false(), nullable=False)
        )


def downgrade() -> None:
    with op.batch_alter_table('hosts', schema=None) as batch_op:
        batch_op.drop_column('standby_ready')
        batch_op.drop_column('standby')
