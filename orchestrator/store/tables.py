"""Every table of the database, in SQLAlchemy Core.

Times are stored as UTC microseconds since the epoch, so that SQLite and PostgreSQL order and
compare them alike. JSON columns hold text that pydantic wrote. Migrations live in `migrations/`;
a test compares what they make with this file.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    false,
)
from sqlalchemy.dialects import postgresql, sqlite

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BigId = BigInteger().with_variant(Integer(), "sqlite")


class Instant(TypeDecorator[datetime]):
    """An aware datetime, kept as whole microseconds."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        span = value - EPOCH
        return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else EPOCH + timedelta(microseconds=value)


def upsert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT of the connection's own dialect, for its ON CONFLICT; both spell it alike."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

installation = Table(
    "installation",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("created_at", Instant, nullable=False),
    # After a restore or an import, orphans are only listed until a person confirms.
    Column("restored_at", Instant),
    Column("sweep_confirmed_at", Instant),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_at", Instant, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(40), nullable=False, unique=True),
    Column("owner", String(80), nullable=False),
    Column("priority", Integer, nullable=False, default=0),
    Column("desired", String(16), nullable=False),
    Column("desired_generation", Integer, nullable=False),
    Column("settled_generation", Integer, nullable=False, default=0),
    Column("state", String(16), nullable=False),
    Column("state_since", Instant, nullable=False),
    Column("reason", Text),
    Column("revision", Integer, nullable=False),
    Column("branch", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("queued_at", Instant),
    # The newest save that was asked for, and the newest that a checkpoint answered.
    Column("save_request", Integer, nullable=False, server_default="0"),
    Column("save_served", Integer, nullable=False, server_default="0"),
    Column("forked_run", String(32)),
    Column("forked_checkpoint", String(40)),
    Index("ix_runs_state", "state"),
)

# Keys of requests that made a run; each person's keys are their own.
request_keys = Table(
    "request_keys",
    metadata,
    Column("owner", String(80), nullable=False),
    Column("key", String(200), nullable=False),
    Column("body_sha256", String(64), nullable=False),
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("owner", "key"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("spec_version", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("author", String(80), nullable=False),
    Column("note", Text),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("run_id", "number"),
)

branches = Table(
    "branches",
    metadata,
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("parent", Integer),
    Column("from_checkpoint", String(40)),
    Column("from_step", Integer, nullable=False, default=0),
    Column("data_plan", Text, nullable=False),
    # A fork that changed the data: its first checkpoint knows another text or order.
    Column("other_data", Boolean, nullable=False, server_default=false()),
    Column("reason", Text),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("run_id", "number"),
)

host_groups = Table(
    "host_groups",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("provider", String(20), nullable=False),
    Column("hosts", Integer, nullable=False),
    Column("devices", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("detail", Text),
    Column("refused", Text),
    Column("created_at", Instant, nullable=False),
    Column("ready_at", Instant),
    Column("released_at", Instant),
    Column("zone", String(60)),
    Column("price_per_hour", Float(53)),  # of the whole group, in the service's currency
    Column("taken", String(16)),
    Column("taken_at", Instant),
    Column("taken_text", Text),
    Column("lost_in_wish", Integer),
    Column("request", Text),  # the provider's own section of what was asked for, as JSON
    UniqueConstraint("run_id", "generation"),
    Index("ix_host_groups_state", "state"),
)

hosts = Table(
    "hosts",
    metadata,
    Column("group", String(80), ForeignKey("host_groups.name", ondelete="CASCADE"), nullable=False),
    Column("index", Integer, nullable=False),
    Column("address", String(80)),
    Column("free_port", Integer),
    Column("secret_sha256", String(64)),
    Column("protocol", Integer),
    Column("instance", String(40)),
    Column("facts", Text),
    Column("registered_at", Instant),
    Column("last_seen_at", Instant),
    Column("spoke_at", Instant),
    Column("running_attempt", Integer),
    # Where its spare meets those of the gang's other hosts, and whether it stands ready there.
    Column("standby", String(100)),
    Column("standby_ready", Boolean, nullable=False, default=False, server_default=false()),
    Column("launched_at", Instant),
    Column("launches", Integer, nullable=False, default=0),
    Column("acked_seq", BigInteger, nullable=False, default=0),
    Column("notice", String(16)),
    Column("notice_at", Instant),
    Column("notice_text", Text),
    Column("unreachable_at", Instant),
    PrimaryKeyConstraint("group", "index"),
)

ssh_hosts = Table(
    "ssh_hosts",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("login", Text, nullable=False),  # as a person wrote it down, as JSON
    Column("kind", String(100), nullable=False),
    Column("devices", Integer, nullable=False),
    Column("added_at", Instant, nullable=False),
    Column("from_file", Boolean, nullable=False, default=False, server_default=false()),
    Column("cordoned_at", Instant),
    Column("cordoned_by", String(16)),
    Column("cordon_why", Text),
    Column("probed_at", Instant),
)

# Hosts that runs are to leave: of the inventory, or this machine.
drains = Table(
    "drains",
    metadata,
    Column("provider", String(40), nullable=False),
    Column("host", String(40), nullable=False),
    Column("reason", Text, nullable=False),
    Column("asked_by", String(80), nullable=False),
    Column("asked_at", Instant, nullable=False),
    PrimaryKeyConstraint("provider", "host"),
)

# Host `index` of a group lies there. No reference to host_groups: what is left of a group that was
# deleted must still be found.
ssh_places = Table(
    "ssh_places",
    metadata,
    Column("group", String(80), nullable=False),
    Column("index", Integer, nullable=False),
    Column("host", String(40), ForeignKey("ssh_hosts.name"), nullable=False),
    Column("claimed_at", Instant, nullable=False),
    Column("python", Text),
    Column("folder", Text),
    Column("left_at", Instant),
    PrimaryKeyConstraint("group", "index"),
)

ssh_slots = Table(
    "ssh_slots",
    metadata,
    Column("host", String(40), ForeignKey("ssh_hosts.name"), nullable=False),
    Column("slot", Integer, nullable=False),
    Column("group", String(80), nullable=False),
    Column("index", Integer, nullable=False),
    PrimaryKeyConstraint("host", "slot"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("branch", Integer, nullable=False),
    Column("group", String(80), ForeignKey("host_groups.name"), nullable=False),
    Column("processes", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("desired_generation", Integer, nullable=False),
    Column("resume_checkpoint", String(40)),
    Column("resumed_from_step", Integer, nullable=False, default=0),
    Column("coordinator", String(100)),
    Column("created_at", Instant, nullable=False),
    Column("spawned_at", Instant),
    Column("first_step_at", Instant),
    Column("stop_asked_at", Instant),
    Column("ended_at", Instant),
    Column("accepted_step", Integer),
    Column("verdict", String(20)),
    Column("summary", Text),
    Column("evidence", Text),
    Column("revised_from", String(20)),
    Column("revised_at", Instant),
    Column("bad_step", Integer),
    Column("save_seconds", Float(53)),
    Column("save_why", Text),
    # Of process 0's start, as far as it has told.
    Column("init_seconds", Float(53)),
    Column("restore_seconds", Float(53)),
    Column("compile_seconds", Float(53)),
    # The least of what process 0 told as its usual step, and how it is slow now.
    Column("best_pace_seconds", Float(53)),
    Column("slow_why", Text),
    # The last step that was told before it was made or that is told late; how its own telling
    # differs first; and when that was told as an incident.
    Column("replays_through", Integer),
    Column("replay_differs_step", Integer),
    Column("replay_differs", Text),
    Column("replay_told_at", Instant),
    # What was killed of it on purpose, when that was asked for, and by whom.
    Column("drill", String(16)),
    Column("drill_at", Instant),
    Column("drill_by", String(80)),
    PrimaryKeyConstraint("run_id", "number"),
)
# At most one current attempt per run, whatever the code above it believes.
Index(
    "uq_attempts_current",
    attempts.c.run_id,
    unique=True,
    sqlite_where=attempts.c.state != "ended",
    postgresql_where=attempts.c.state != "ended",
)
# Differences of replayed steps that no incident tells of yet: nearly always none, and asked for
# with each list of the active runs.
UNTOLD_REPLAY = (attempts.c.replay_differs_step.is_not(None)) & attempts.c.replay_told_at.is_(None)
Index(
    "ix_attempts_untold_replay",
    attempts.c.run_id,
    sqlite_where=UNTOLD_REPLAY,
    postgresql_where=UNTOLD_REPLAY,
)

trainers = Table(
    "trainers",
    metadata,
    Column("run_id", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("pid", Integer),
    Column("numerics_key", Text),
    Column("phase", String(16)),
    Column("phase_at", Instant),
    Column("last_step", Integer),
    Column("last_step_at", Instant),
    Column("finished_step", Integer),
    Column("drained", Boolean, nullable=False, default=False),
    Column("failure", Text),
    Column("hint", Text),
    Column("exited_at", Instant),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("killed_by_agent", Boolean, nullable=False, default=False),
    Column("why_killed", Text),
    Column("last_lines", Text),
    Column("killed_for", String(16)),
    Column("memory_killer", Text),
    Column("diverged_step", Integer),
    Column("diverged_where", Text),
    Column("pace_at", Instant),
    Column("pace_step", Integer),
    Column("pace_seconds", Float(53)),
    Column("pace_own", Float(53)),
    Column("pace_data_wait", Float(53)),
    Column("slow_why", Text),
    Column("leave_after", Integer),
    PrimaryKeyConstraint("run_id", "attempt", "rank"),
    ForeignKeyConstraint(
        ["run_id", "attempt"], ["attempts.run_id", "attempts.number"], ondelete="CASCADE"
    ),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("id", String(40), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("branch", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("uri", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("files", Integer, nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("state_digest", String(64), nullable=False),
    Column("stall_seconds", Float, nullable=False),
    Column("write_seconds", Float, nullable=False),
    Column("written_at", Instant, nullable=False),
    Column("accepted_at", Instant),
    Column("verified_at", Instant),
    Column("reason", Text),
    Column("files_gone_at", Instant),  # of a deleted one, once an agent has told so
    PrimaryKeyConstraint("run_id", "id"),
    Index("ix_checkpoints_run_id_branch_step", "run_id", "branch", "step"),
    Index("ix_checkpoints_uri", "uri"),
)
# What agents still have to delete: nearly always nothing, and asked for at each of their reports.
_TO_DELETE = (checkpoints.c.state == "deleted") & checkpoints.c.files_gone_at.is_(None)
Index(
    "ix_checkpoints_to_delete",
    checkpoints.c.run_id,
    sqlite_where=_TO_DELETE,
    postgresql_where=_TO_DELETE,
)

# One row for each host that a run may hold within one limit ("provider:local", "owner:ada").
claims = Table(
    "claims",
    metadata,
    Column("scope", String(120), nullable=False),
    Column("slot", Integer, nullable=False),
    Column("run_id", String(32), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("claimed_at", Instant, nullable=False),
    PrimaryKeyConstraint("scope", "slot"),
    Index("ix_claims_run_id", "run_id"),
)

# What a provider holds in this installation's name and no run wants. Rows stay, for the bill.
orphans = Table(
    "orphans",
    metadata,
    Column("provider", String(20), nullable=False),
    Column("name", String(80), nullable=False),
    Column("hosts", Integer),
    Column("price_per_hour", Float(53)),
    Column("why", Text, nullable=False),
    Column("first_seen_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Column("reap_asked_at", Instant),
    Column("gone_at", Instant),
    PrimaryKeyConstraint("provider", "name", "first_seen_at"),
)

incidents = Table(
    "incidents",
    metadata,
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("verdict", String(20), nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("summary", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("done", Text, nullable=False),
    Column("needs_person", Boolean, nullable=False),
    Column("closed_at", Instant),
    Column("closed_by_attempt", Integer),
    PrimaryKeyConstraint("run_id", "number"),
)

# Messages to the person on call, sent once for each incident that needs one.
pages = Table(
    "pages",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("run_id", String(32), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("incident", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("next_try_at", Instant, nullable=False),
    Column("sent_at", Instant),
    Column("given_up_at", Instant),
    Column("error", Text),
    UniqueConstraint("run_id", "incident"),
)
_WAITING = pages.c.sent_at.is_(None) & pages.c.given_up_at.is_(None)
Index(
    "ix_pages_next_try_at",
    pages.c.next_try_at,
    sqlite_where=_WAITING,
    postgresql_where=_WAITING,
)

events = Table(
    "events",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer),
    Column("rank", Integer),
    Column("kind", String(40), nullable=False),
    Column("at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("body", Text, nullable=False),
    Index("ix_events_run_id_id", "run_id", "id"),
    Index("ix_events_run_id_kind_id", "run_id", "kind", "id"),
)

metric_points = Table(
    "metric_points",
    metadata,
    Column("run_id", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("loss", Float(53)),  # NULL: not a number (SQLite keeps no NaN)
    Column("grad_norm", Float(53)),
    Column("learning_rate", Float(53), nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("data_wait", Float(53), nullable=False),
    Column("batch_hash", String(32), nullable=False),
    PrimaryKeyConstraint("run_id", "attempt", "step"),
    sqlite_with_rowid=False,
)

# Spans of `span` steps, for charts over long runs and for points whose retention is over.
metric_rollups = Table(
    "metric_rollups",
    metadata,
    Column("run_id", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("span", Integer, nullable=False),
    Column("first_step", Integer, nullable=False),
    Column("last_step", Integer, nullable=False),
    Column("count", Integer, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("losses", Integer, nullable=False),  # the finite ones, of which the sums are
    Column("loss_min", Float(53)),
    Column("loss_max", Float(53)),
    Column("loss_sum", Float(53), nullable=False),
    Column("loss_last", Float(53)),
    Column("grad_norms", Integer, nullable=False),
    Column("grad_norm_min", Float(53)),
    Column("grad_norm_max", Float(53)),
    Column("grad_norm_sum", Float(53), nullable=False),
    Column("grad_norm_last", Float(53)),
    Column("learning_rate_last", Float(53), nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("seconds_max", Float(53), nullable=False),
    Column("data_wait", Float(53), nullable=False),
    PrimaryKeyConstraint("run_id", "attempt", "span", "first_step"),
    sqlite_with_rowid=False,
)

evals = Table(
    "evals",
    metadata,
    Column("run_id", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("loss", Float(53)),
    Column("batches", Integer, nullable=False),
    Column("seconds", Float(53), nullable=False),
    PrimaryKeyConstraint("run_id", "attempt", "step"),
)

log_lines = Table(
    "log_lines",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("line", Text, nullable=False),
    Index("ix_log_lines_run_id_id", "run_id", "id"),
)

# The packed folders that programs run in, by the hash of their content. `kept_at` is set once every
# part is there; `used_at` is when one was last sent, or named by a new revision.
bundles = Table(
    "bundles",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("used_at", Instant, nullable=False),
    Column("kept_at", Instant),
)

bundle_parts = Table(
    "bundle_parts",
    metadata,
    Column("sha256", String(64), ForeignKey("bundles.sha256", ondelete="CASCADE"), nullable=False),
    Column("part", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
    PrimaryKeyConstraint("sha256", "part"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("name", String(80), nullable=False),
    Column("owner", String(80), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", String(80), nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("last_used_at", Instant),
)

login_codes = Table(
    "login_codes",
    metadata,
    Column("code_sha256", String(64), primary_key=True),
    Column("expires_at", Instant, nullable=False),
    Column("used_at", Instant),
    Column("owner", String(80)),
    Column("role", String(16)),
    Column("token_id", String(16)),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_sha256", String(64), primary_key=True),
    Column("csrf", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("owner", String(80)),
    Column("token_id", String(16)),  # a revoked token ends its sessions
)

# Who did what: only ever added to.
audit = Table(
    "audit",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("actor", String(80), nullable=False),
    Column("role", String(16), nullable=False),
    Column("remote", String(80)),
    Column("token_id", String(16)),
    Column("action", String(40), nullable=False),
    Column("target", String(120)),
    Column("before", Text),
    Column("after", Text),
    Index("ix_audit_target", "target"),
)
_ONLY_ADDED = "the audit log is only added to"
_AUDIT_GUARDS = {
    "sqlite": [
        f"CREATE TRIGGER audit_no_{verb} BEFORE {verb.upper()} ON audit"
        f" BEGIN SELECT RAISE(ABORT, '{_ONLY_ADDED}'); END"
        for verb in ("update", "delete")
    ],
    "postgresql": [
        "CREATE FUNCTION audit_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{_ONLY_ADDED}'; END $$",
        "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit"
        " FOR EACH ROW EXECUTE FUNCTION audit_is_only_added_to()",
        "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit"
        " FOR EACH STATEMENT EXECUTE FUNCTION audit_is_only_added_to()",
    ],
}
for _dialect, _statements in _AUDIT_GUARDS.items():
    for _statement in _statements:
        event.listen(audit, "after_create", DDL(_statement).execute_if(dialect=_dialect))
event.listen(
    audit,
    "after_drop",
    DDL("DROP FUNCTION IF EXISTS audit_is_only_added_to()").execute_if(dialect="postgresql"),
)
