"""Which attempts differ from a first telling without an incident that says so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

UNTOLD = sa.text("replay_differs_step IS NOT NULL AND replay_told_at IS NULL")


def upgrade() -> None:
    op.create_index(
        "ix_attempts_untold_replay",
        "attempts",
        ["run_id"],
        sqlite_where=UNTOLD,
        postgresql_where=UNTOLD,
    )


def downgrade() -> None:
    op.drop_index("ix_attempts_untold_replay", "attempts")
