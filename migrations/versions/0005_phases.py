"""How long the phases of an attempt's start took."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = ("init_seconds", "restore_seconds", "compile_seconds")


def upgrade() -> None:
    with op.batch_alter_table('attempts', schema=None) as batch_op:
        for name in COLUMNS:
            batch_op.add_column(sa.Column(name, sa.Float(precision=53), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('attempts', schema=None) as batch_op:
        for name in reversed(COLUMNS):
            batch_op.drop_column(name)
