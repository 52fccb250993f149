"""The inventory of SSH hosts, and which of their device slots serve which group."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'ssh_hosts',
        sa.Column('name', sa.String(length=40), nullable=False),
        sa.Column('login', sa.Text(), nullable=False),
        sa.Column('kind', sa.String(length=100), nullable=False),
        sa.Column('devices', sa.Integer(), nullable=False),
        sa.Column('added_at', sa.BigInteger(), nullable=False),
        sa.Column('from_file', sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column('cordoned_at', sa.BigInteger(), nullable=True),
        sa.Column('cordoned_by', sa.String(length=16), nullable=True),
        sa.Column('cordon_why', sa.Text(), nullable=True),
        sa.Column('probed_at', sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint('name', name=op.f('pk_ssh_hosts')),
    )
    op.create_table(
        'ssh_places',
        sa.Column('group', sa.String(length=80), nullable=False),
        sa.Column('index', sa.Integer(), nullable=False),
        sa.Column('host', sa.String(length=40), nullable=False),
        sa.Column('claimed_at', sa.BigInteger(), nullable=False),
        sa.Column('python', sa.Text(), nullable=True),
        sa.Column('folder', sa.Text(), nullable=True),
        sa.Column('left_at', sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(['host'], ['ssh_hosts.name'], name=op.f('fk_ssh_places_host')),
        sa.PrimaryKeyConstraint('group', 'index', name=op.f('pk_ssh_places')),
    )
    op.create_table(
        'ssh_slots',
        sa.Column('host', sa.String(length=40), nullable=False),
        sa.Column('slot', sa.Integer(), nullable=False),
        sa.Column('group', sa.String(length=80), nullable=False),
        sa.Column('index', sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(['host'], ['ssh_hosts.name'], name=op.f('fk_ssh_slots_host')),
        sa.PrimaryKeyConstraint('host', 'slot', name=op.f('pk_ssh_slots')),
    )


def downgrade() -> None:
    op.drop_table('ssh_slots')
    op.drop_table('ssh_places')
    op.drop_table('ssh_hosts')
