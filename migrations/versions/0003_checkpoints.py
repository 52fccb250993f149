"""How often an attempt saves, and which deleted checkpoints still have files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('save_seconds', sa.Float(precision=53), nullable=True))
        batch_op.add_column(sa.Column('save_why', sa.Text(), nullable=True))

    to_delete = sa.text("state = 'deleted' AND files_gone_at IS NULL")
    with op.batch_alter_table('checkpoints', schema=None) as batch_op:
        batch_op.add_column(sa.Column('files_gone_at', sa.BigInteger(), nullable=True))
    with op.batch_alter_table('checkpoints', schema=None) as batch_op:
        batch_op.create_index('ix_checkpoints_uri', ['uri'], unique=False)
        batch_op.create_index(
            'ix_checkpoints_to_delete', ['run_id'], unique=False,
            sqlite_where=to_delete, postgresql_where=to_delete)


def downgrade() -> None:
    with op.batch_alter_table('checkpoints', schema=None) as batch_op:
        batch_op.drop_index('ix_checkpoints_to_delete')
        batch_op.drop_index('ix_checkpoints_uri')
    with op.batch_alter_table('checkpoints', schema=None) as batch_op:
        batch_op.drop_column('files_gone_at')

    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.drop_column('save_why')
        batch_op.drop_column('save_seconds')
