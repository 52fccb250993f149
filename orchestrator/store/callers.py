"""Who calls: an agent proves to be the one that was launched for its host.

Owns the refusals of the agents' calls. Each says what is the matter; the API gives it a status.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from orchestrator.state import GroupState
from orchestrator.store.tables import host_groups, hosts

LIVE_GROUPS = frozenset({GroupState.REQUESTED, GroupState.CREATING, GroupState.READY})


class AgentRefused(Exception):
    """An agent's call that changes nothing."""


class BadSecret(AgentRefused):
    """No such host, or not its secret; which of the two is not told."""


class OldInstance(AgentRefused):
    """Another agent process speaks for this host now: this one must end its trainer and leave."""


class GroupNotWanted(AgentRefused):
    """The host group is being given back."""


class ProtocolRefused(AgentRefused):
    """The agent speaks a version of the protocol that this control plane does not."""


class StaleAttempt(AgentRefused):
    """The attempt is not current, or the checkpoint is not one that it may offer."""


@dataclass(frozen=True)
class Caller:
    group: str
    host: int
    run_id: str
    group_state: GroupState
    instance: str | None
    registered_at: datetime | None
    acked_seq: int


def secret_digest(secret: str) -> str:
    """What is kept of a secret: it is random and long, so a plain SHA-256 suffices."""
    return hashlib.sha256(secret.encode()).hexdigest()


def identify(connection: Connection, group: str, host: int, secret: str) -> Caller:
    """The host whose secret this is, its row held until the commit; raises `BadSecret`."""
    row = connection.execute(
        select(
            hosts.c.secret_sha256,
            hosts.c.instance,
            hosts.c.registered_at,
            hosts.c.acked_seq,
            host_groups.c.run_id,
            host_groups.c.state,
        )
        .join(host_groups, host_groups.c.name == hosts.c.group)
        .where(hosts.c.group == group, hosts.c.index == host)
        .with_for_update(of=hosts)
    ).one_or_none()
    expected = (row.secret_sha256 if row else None) or ""
    if not hmac.compare_digest(secret_digest(secret), expected) or row is None:
        raise BadSecret("no agent with this secret is expected for this host")
    return Caller(
        group=group,
        host=host,
        run_id=row.run_id,
        group_state=GroupState(row.state),
        instance=row.instance,
        registered_at=row.registered_at,
        acked_seq=row.acked_seq,
    )


def identify_instance(
    connection: Connection, group: str, host: int, instance: str, secret: str
) -> Caller:
    """As `identify`, for the agent process that registered last; raises `OldInstance`."""
    caller = identify(connection, group, host, secret)
    if caller.instance != instance:
        raise OldInstance("this agent process is not the one that registered last for its host")
    return caller


def run_of(connection: Connection, group: str) -> str:
    """The run that owns the group, which must exist."""
    return connection.execute(
        select(host_groups.c.run_id).where(host_groups.c.name == group)
    ).scalar_one()
