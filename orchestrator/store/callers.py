"""Who calls: an agent proves to be the one that was launched for its host.

Owns the refusals of the agents' calls. Each says what is the matter; the API gives it a status.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, select

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
    standby: str | None = None


@dataclass(frozen=True)
class Known:
    """A host and what is kept of its secret; without one, nobody may speak for it."""

    secret_sha256: str | None
    caller: Caller


def secret_digest(secret: str) -> str:
    """What is kept of a secret: it is random and long, so a plain SHA-256 suffices."""
    return hashlib.sha256(secret.encode()).hexdigest()


def known_hosts(
    connection: Connection, wanted: Collection[tuple[str, int]]
) -> dict[tuple[str, int], Known]:
    """The hosts of these (group, index), their rows held until the commit.

    They are held in one order, so that two control planes on one database do not wait for each
    other. A few more hosts of the same groups may be among them.
    """
    groups, indices = {group for group, _ in wanted}, {index for _, index in wanted}
    found = connection.execute(_KNOWN, {"groups": list(groups), "indices": list(indices)})
    return {
        (row.group, row.host): Known(
            row.secret_sha256,
            Caller(
                group=row.group,
                host=row.host,
                run_id=row.run_id,
                group_state=GroupState(row.state),
                instance=row.instance,
                registered_at=row.registered_at,
                acked_seq=row.acked_seq,
                standby=row.standby,
            ),
        )
        for row in found
    }


_KNOWN = (
    select(
        hosts.c.group,
        hosts.c.index.label("host"),
        hosts.c.secret_sha256,
        hosts.c.instance,
        hosts.c.registered_at,
        hosts.c.acked_seq,
        hosts.c.standby,
        host_groups.c.run_id,
        host_groups.c.state,
    )
    .join(host_groups, host_groups.c.name == hosts.c.group)
    .where(
        hosts.c.group.in_(bindparam("groups", expanding=True)),
        hosts.c.index.in_(bindparam("indices", expanding=True)),
    )
    .order_by(hosts.c.group, hosts.c.index)
    .with_for_update(of=hosts)
)


def prove(known: Known | None, secret: str) -> Caller:
    """The caller whose secret this is; raises `BadSecret`."""
    expected = (known.secret_sha256 if known else None) or ""
    if not hmac.compare_digest(secret_digest(secret), expected) or known is None:
        raise BadSecret("no agent with this secret is expected for this host")
    return known.caller


def prove_instance(known: Known | None, instance: str, secret: str) -> Caller:
    """As `prove`, for the agent process that registered last; raises `OldInstance`."""
    caller = prove(known, secret)
    if caller.instance != instance:
        raise OldInstance("this agent process is not the one that registered last for its host")
    return caller


def identify(connection: Connection, group: str, host: int, secret: str) -> Caller:
    """The host whose secret this is, its row held until the commit; raises `BadSecret`."""
    return prove(known_hosts(connection, [(group, host)]).get((group, host)), secret)


def identify_instance(
    connection: Connection, group: str, host: int, instance: str, secret: str
) -> Caller:
    """As `identify`, for the agent process that registered last; raises `OldInstance`."""
    known = known_hosts(connection, [(group, host)]).get((group, host))
    return prove_instance(known, instance, secret)


def run_of(connection: Connection, group: str) -> str:
    """The run that owns the group, which must exist."""
    return connection.execute(
        select(host_groups.c.run_id).where(host_groups.c.name == group)
    ).scalar_one()
