"""What a host group was asked for beside its numbers: the provider's own part of the spec."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('host_groups', schema=None) as batch_op:
        batch_op.add_column(sa.Column('request', sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('host_groups', schema=None) as batch_op:
        batch_op.drop_column('request')
