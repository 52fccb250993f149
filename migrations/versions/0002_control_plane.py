"""Tokens, audit, claims, orphans, pages, rollups, and evidence that may revise a verdict."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _guard_audit() -> None:
    if op.get_bind().dialect.name == 'postgresql':
        op.execute("CREATE FUNCTION audit_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS"
                   " $$ BEGIN RAISE EXCEPTION 'the audit log is only added to'; END $$")
        op.execute("CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit"
                   " FOR EACH ROW EXECUTE FUNCTION audit_is_only_added_to()")
        op.execute("CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit"
                   " FOR EACH STATEMENT EXECUTE FUNCTION audit_is_only_added_to()")
        return
    for verb in ('update', 'delete'):
        op.execute(f"CREATE TRIGGER audit_no_{verb} BEFORE {verb.upper()} ON audit"
                   " BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END")


def upgrade() -> None:
    op.create_table('audit',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('at', sa.BigInteger(), nullable=False),
    sa.Column('actor', sa.String(length=80), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('remote', sa.String(length=80), nullable=True),
    sa.Column('token_id', sa.String(length=16), nullable=True),
    sa.Column('action', sa.String(length=40), nullable=False),
    sa.Column('target', sa.String(length=120), nullable=True),
    sa.Column('before', sa.Text(), nullable=True),
    sa.Column('after', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit'))
    )
    with op.batch_alter_table('audit', schema=None) as batch_op:
        batch_op.create_index('ix_audit_target', ['target'], unique=False)

    _guard_audit()
    op.create_table('metric_rollups',
    sa.Column('run_id', sa.String(length=32), nullable=False),
    sa.Column('attempt', sa.Integer(), nullable=False),
    sa.Column('span', sa.Integer(), nullable=False),
    sa.Column('first_step', sa.Integer(), nullable=False),
    sa.Column('last_step', sa.Integer(), nullable=False),
    sa.Column('count', sa.Integer(), nullable=False),
    sa.Column('last_at', sa.BigInteger(), nullable=False),
    sa.Column('losses', sa.Integer(), nullable=False),
    sa.Column('loss_min', sa.Float(precision=53), nullable=True),
    sa.Column('loss_max', sa.Float(precision=53), nullable=True),
    sa.Column('loss_sum', sa.Float(precision=53), nullable=False),
    sa.Column('loss_last', sa.Float(precision=53), nullable=True),
    sa.Column('grad_norms', sa.Integer(), nullable=False),
    sa.Column('grad_norm_min', sa.Float(precision=53), nullable=True),
    sa.Column('grad_norm_max', sa.Float(precision=53), nullable=True),
    sa.Column('grad_norm_sum', sa.Float(precision=53), nullable=False),
    sa.Column('grad_norm_last', sa.Float(precision=53), nullable=True),
    sa.Column('learning_rate_last', sa.Float(precision=53), nullable=False),
    sa.Column('tokens', sa.BigInteger(), nullable=False),
    sa.Column('seconds', sa.Float(precision=53), nullable=False),
    sa.Column('seconds_max', sa.Float(precision=53), nullable=False),
    sa.Column('data_wait', sa.Float(precision=53), nullable=False),
    sa.PrimaryKeyConstraint('run_id', 'attempt', 'span', 'first_step', name=op.f('pk_metric_rollups')),
    sqlite_with_rowid=False
    )
    op.create_table('orphans',
    sa.Column('provider', sa.String(length=20), nullable=False),
    sa.Column('name', sa.String(length=80), nullable=False),
    sa.Column('hosts', sa.Integer(), nullable=True),
    sa.Column('price_per_hour', sa.Float(precision=53), nullable=True),
    sa.Column('why', sa.Text(), nullable=False),
    sa.Column('first_seen_at', sa.BigInteger(), nullable=False),
    sa.Column('last_seen_at', sa.BigInteger(), nullable=False),
    sa.Column('reap_asked_at', sa.BigInteger(), nullable=True),
    sa.Column('gone_at', sa.BigInteger(), nullable=True),
    sa.PrimaryKeyConstraint('provider', 'name', 'first_seen_at', name=op.f('pk_orphans'))
    )
    op.create_table('tokens',
    sa.Column('id', sa.String(length=16), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('name', sa.String(length=80), nullable=False),
    sa.Column('owner', sa.String(length=80), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('created_by', sa.String(length=80), nullable=False),
    sa.Column('expires_at', sa.BigInteger(), nullable=True),
    sa.Column('revoked_at', sa.BigInteger(), nullable=True),
    sa.Column('last_used_at', sa.BigInteger(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_tokens')),
    sa.UniqueConstraint('sha256', name=op.f('uq_tokens_sha256'))
    )
    op.create_table('claims',
    sa.Column('scope', sa.String(length=120), nullable=False),
    sa.Column('slot', sa.Integer(), nullable=False),
    sa.Column('run_id', sa.String(length=32), nullable=False),
    sa.Column('claimed_at', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['run_id'], ['runs.id'], name=op.f('fk_claims_run_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('scope', 'slot', name=op.f('pk_claims'))
    )
    with op.batch_alter_table('claims', schema=None) as batch_op:
        batch_op.create_index('ix_claims_run_id', ['run_id'], unique=False)

    op.create_table('pages',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('run_id', sa.String(length=32), nullable=False),
    sa.Column('incident', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('tries', sa.Integer(), server_default='0', nullable=False),
    sa.Column('next_try_at', sa.BigInteger(), nullable=False),
    sa.Column('sent_at', sa.BigInteger(), nullable=True),
    sa.Column('given_up_at', sa.BigInteger(), nullable=True),
    sa.Column('error', sa.Text(), nullable=True),
    sa.ForeignKeyConstraint(['run_id'], ['runs.id'], name=op.f('fk_pages_run_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_pages')),
    sa.UniqueConstraint('run_id', 'incident', name=op.f('uq_pages_run_id_incident'))
    )
    with op.batch_alter_table('pages', schema=None) as batch_op:
        batch_op.create_index(
            'ix_pages_next_try_at', ['next_try_at'], unique=False,
            sqlite_where=sa.text('sent_at IS NULL AND given_up_at IS NULL'),
            postgresql_where=sa.text('sent_at IS NULL AND given_up_at IS NULL'))

    with op.batch_alter_table('events', schema=None) as batch_op:
        batch_op.create_index('ix_events_run_id_kind_id', ['run_id', 'kind', 'id'], unique=False)

    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('revised_from', sa.String(length=20), nullable=True))
        batch_op.add_column(sa.Column('revised_at', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('bad_step', sa.Integer(), nullable=True))

    with op.batch_alter_table('branches', schema=None) as batch_op:
        batch_op.add_column(sa.Column('other_data', sa.Boolean(), server_default=sa.false(), nullable=False))

    with op.batch_alter_table('host_groups', schema=None) as batch_op:
        batch_op.add_column(sa.Column('zone', sa.String(length=60), nullable=True))
        batch_op.add_column(sa.Column('price_per_hour', sa.Float(precision=53), nullable=True))
        batch_op.add_column(sa.Column('taken', sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column('taken_at', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('taken_text', sa.Text(), nullable=True))
        batch_op.add_column(sa.Column('lost_in_wish', sa.Integer(), nullable=True))

    with op.batch_alter_table('hosts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('notice', sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column('notice_at', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('notice_text', sa.Text(), nullable=True))
        batch_op.add_column(sa.Column('unreachable_at', sa.BigInteger(), nullable=True))

    with op.batch_alter_table('installation', schema=None) as batch_op:
        batch_op.add_column(sa.Column('restored_at', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('sweep_confirmed_at', sa.BigInteger(), nullable=True))

    with op.batch_alter_table('login_codes', schema=None) as batch_op:
        batch_op.add_column(sa.Column('owner', sa.String(length=80), nullable=True))
        batch_op.add_column(sa.Column('role', sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column('token_id', sa.String(length=16), nullable=True))

    with op.batch_alter_table('runs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('queued_at', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('save_request', sa.Integer(), server_default='0', nullable=False))
        batch_op.add_column(sa.Column('save_served', sa.Integer(), server_default='0', nullable=False))
        batch_op.add_column(sa.Column('forked_run', sa.String(length=32), nullable=True))
        batch_op.add_column(sa.Column('forked_checkpoint', sa.String(length=40), nullable=True))

    with op.batch_alter_table('sessions', schema=None) as batch_op:
        batch_op.add_column(sa.Column('owner', sa.String(length=80), nullable=True))
        batch_op.add_column(sa.Column('token_id', sa.String(length=16), nullable=True))

    with op.batch_alter_table('trainers', schema=None) as batch_op:
        batch_op.add_column(sa.Column('killed_for', sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column('memory_killer', sa.Text(), nullable=True))
        batch_op.add_column(sa.Column('diverged_step', sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column('diverged_where', sa.Text(), nullable=True))

    op.create_table('request_keys',
    sa.Column('owner', sa.String(length=80), nullable=False),
    sa.Column('key', sa.String(length=200), nullable=False),
    sa.Column('body_sha256', sa.String(length=64), nullable=False),
    sa.Column('run_id', sa.String(length=80), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['run_id'], ['runs.id'], name=op.f('fk_request_keys_run_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('owner', 'key', name=op.f('pk_request_keys'))
    )
    op.execute("INSERT INTO request_keys SELECT runs.owner, k.key, k.body_sha256, k.run_id, k.created_at"
               " FROM idempotency_keys k JOIN runs ON runs.id = k.run_id")
    op.drop_table('idempotency_keys')
    _claim_what_is_held()


def _claim_what_is_held() -> None:
    """Runs that have hosts hold them within the limits from now on, and the queue has its order."""
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE runs SET queued_at = state_since WHERE state = 'queued'"))
    held = connection.execute(
        sa.text(
            "SELECT g.run_id, g.provider, g.hosts, g.created_at, r.owner FROM host_groups g"
            " JOIN runs r ON r.id = g.run_id WHERE g.state <> 'gone' ORDER BY g.name"
        )
    ).all()
    claims = sa.table("claims", *map(sa.column, ("scope", "slot", "run_id", "claimed_at")))
    last: dict[str, int] = {}
    for run_id, provider, hosts, at, owner in held:
        for scope in (f"provider:{provider}", f"owner:{owner}"):
            for _ in range(hosts):
                last[scope] = last.get(scope, 0) + 1
                row = {"scope": scope, "slot": last[scope], "run_id": run_id, "claimed_at": at}
                connection.execute(sa.insert(claims).values(row))


def downgrade() -> None:
    op.create_table('idempotency_keys',
    sa.Column('key', sa.String(length=200), nullable=False),
    sa.Column('body_sha256', sa.String(length=64), nullable=False),
    sa.Column('run_id', sa.String(length=80), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['run_id'], ['runs.id'], name=op.f('fk_idempotency_keys_run_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('key', name=op.f('pk_idempotency_keys'))
    )
    # The older schema has one owner for all keys: of two people's equal keys the first one stays.
    op.execute("INSERT INTO idempotency_keys SELECT key, body_sha256, run_id, created_at"
               " FROM request_keys r WHERE NOT EXISTS (SELECT 1 FROM request_keys o WHERE o.key = r.key"
               " AND (o.created_at, o.owner) < (r.created_at, r.owner))")
    op.drop_table('request_keys')
    with op.batch_alter_table('trainers', schema=None) as batch_op:
        batch_op.drop_column('diverged_where')
        batch_op.drop_column('diverged_step')
        batch_op.drop_column('memory_killer')
        batch_op.drop_column('killed_for')

    with op.batch_alter_table('sessions', schema=None) as batch_op:
        batch_op.drop_column('token_id')
        batch_op.drop_column('owner')

    with op.batch_alter_table('runs', schema=None) as batch_op:
        batch_op.drop_column('forked_checkpoint')
        batch_op.drop_column('forked_run')
        batch_op.drop_column('save_served')
        batch_op.drop_column('save_request')
        batch_op.drop_column('queued_at')

    with op.batch_alter_table('login_codes', schema=None) as batch_op:
        batch_op.drop_column('token_id')
        batch_op.drop_column('role')
        batch_op.drop_column('owner')

    with op.batch_alter_table('installation', schema=None) as batch_op:
        batch_op.drop_column('sweep_confirmed_at')
        batch_op.drop_column('restored_at')

    with op.batch_alter_table('hosts', schema=None) as batch_op:
        batch_op.drop_column('unreachable_at')
        batch_op.drop_column('notice_text')
        batch_op.drop_column('notice_at')
        batch_op.drop_column('notice')

    with op.batch_alter_table('host_groups', schema=None) as batch_op:
        batch_op.drop_column('lost_in_wish')
        batch_op.drop_column('taken_text')
        batch_op.drop_column('taken_at')
        batch_op.drop_column('taken')
        batch_op.drop_column('price_per_hour')
        batch_op.drop_column('zone')

    with op.batch_alter_table('branches', schema=None) as batch_op:
        batch_op.drop_column('other_data')

    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.drop_column('bad_step')
        batch_op.drop_column('revised_at')
        batch_op.drop_column('revised_from')

    with op.batch_alter_table('pages', schema=None) as batch_op:
        batch_op.drop_index('ix_pages_next_try_at')

    op.drop_table('pages')
    with op.batch_alter_table('events', schema=None) as batch_op:
        batch_op.drop_index('ix_events_run_id_kind_id')

    with op.batch_alter_table('claims', schema=None) as batch_op:
        batch_op.drop_index('ix_claims_run_id')

    op.drop_table('claims')
    op.drop_table('tokens')
    op.drop_table('orphans')
    op.drop_table('metric_rollups')
    with op.batch_alter_table('audit', schema=None) as batch_op:
        batch_op.drop_index('ix_audit_target')

    op.drop_table('audit')
    if op.get_bind().dialect.name == 'postgresql':
        op.execute('DROP FUNCTION audit_is_only_added_to()')
