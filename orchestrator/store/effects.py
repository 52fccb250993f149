"""The last look before a provider is called: who leads, for how long, and is it still wanted?

Owns the fence of calls that no transaction can take back. A call is allowed while the leader's
lease lasts by the database's clock: until then nobody else can have led.
"""

from __future__ import annotations

from collections.abc import Container
from datetime import timedelta

from sqlalchemy import Connection, select

from orchestrator.state import GroupState
from orchestrator.store import lease
from orchestrator.store.tables import host_groups

ASKED_FOR = frozenset({GroupState.REQUESTED, GroupState.CREATING})
SERVING = frozenset({GroupState.READY})
GIVEN_BACK = frozenset({GroupState.RELEASING})


class NotWanted(Exception):
    """The group has moved on since the decision: this call is no longer asked for."""


def allow(
    connection: Connection, group: str, states: Container[GroupState], token: int
) -> timedelta:
    """How long from now the call may begin. `group` names its generation.

    Raises `lease.Fenced` unless `token` leads and its lease lasts, `NotWanted` when the group is in
    another state than the call is meant for.
    """
    left = lease.lasting(connection, token)
    state = connection.scalar(
        select(host_groups.c.state).where(host_groups.c.name == group).with_for_update(read=True)
    )
    if state is None or GroupState(state) not in states:
        raise NotWanted(f"host group {group} is {state}")
    return left
