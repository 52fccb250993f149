"""What an agent that starts a program may be told beside its spec. Reads only."""

from __future__ import annotations

from sqlalchemy import Connection, select

from orchestrator.store import reads
from orchestrator.store.callers import StaleAttempt, identify_instance
from orchestrator.store.conditions import CURRENT
from orchestrator.store.tables import attempts
from worker.protocol import CommandSpec, SecretsAsked


def secrets_of(connection: Connection, call: SecretsAsked, secret: str) -> tuple[str, ...]:
    """The names in the spec of the caller's attempt; raises `AgentRefused` if it is not current."""
    caller = identify_instance(connection, call.group, call.host, call.instance, secret)
    revision = connection.execute(
        select(attempts.c.revision).where(
            attempts.c.run_id == caller.run_id,
            attempts.c.number == call.attempt,
            attempts.c.group == caller.group,
            CURRENT,
        )
    ).scalar()
    if revision is None:
        raise StaleAttempt(f"attempt {call.attempt} is not current here")
    job = reads.job_spec(connection, caller.run_id, revision)
    return job.secrets if isinstance(job, CommandSpec) else ()
