"""Claims: one row for each host that a run holds, in each scope that limits it.

Owns the table `claims`, whose key (scope, slot) is the truth about the limits: of two commits that
race for the last slot one fails. Claims are taken with a run's host group, kept while the run goes
on with such hosts, and dropped in the transaction in which it rests, or wants others, and its hosts
are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from itertools import count, islice

from sqlalchemy import Connection, delete, func, insert, or_, select
from sqlalchemy.exc import IntegrityError

from orchestrator.reconcile.queue import Holder, owner_scope, provider_scope
from orchestrator.reconcile.snapshot import Limits
from orchestrator.state import TERMINAL_RUNS, Desired, RunState
from orchestrator.store.conditions import HELD
from orchestrator.store.tables import claims, host_groups, runs

AT_REST = frozenset({*TERMINAL_RUNS, RunState.PAUSED, RunState.QUEUED})


class NoRoom(Exception):
    """A limit has no room for the hosts; who decided so had seen older claims."""


def take(
    connection: Connection, run_id: str, provider: str, hosts: int, limits: Limits, now: datetime
) -> None:
    """The run holds `hosts` of `provider` from now on, whatever it held before.

    Raises `NoRoom` where that is more than a limit; the caller's transaction must end then.
    """
    owner = connection.execute(select(runs.c.owner).where(runs.c.id == run_id)).scalar_one()
    wanted = {provider_scope(provider), owner_scope(owner)}
    mine = claims.c.run_id == run_id
    connection.execute(delete(claims).where(mine, claims.c.scope.not_in(wanted)))
    for scope in sorted(wanted):
        _hold(connection, run_id, scope, hosts, limits.of(scope), now)


def _hold(
    connection: Connection, run_id: str, scope: str, hosts: int, limit: int | None, now: datetime
) -> None:
    query = select(claims.c.slot, claims.c.run_id).where(claims.c.scope == scope)
    taken = {row.slot: row.run_id for row in connection.execute(query)}
    own = sorted(slot for slot, holder in taken.items() if holder == run_id)
    if len(own) >= hosts:
        _give_back(connection, scope, own[hosts:])
        return
    missing = hosts - len(own)
    if limit is not None and len(taken) + missing > limit:
        raise NoRoom(f"{scope} has {limit - len(taken)} of {limit} free, {missing} are asked for")
    free = islice((slot for slot in count(1) if slot not in taken), missing)
    try:
        connection.execute(
            insert(claims),
            [{"scope": scope, "slot": s, "run_id": run_id, "claimed_at": now} for s in free],
        )
    except IntegrityError as error:
        raise NoRoom(f"somebody else has just taken the room in {scope}") from error


def _give_back(connection: Connection, scope: str, slots: Collection[int]) -> None:
    if slots:
        connection.execute(delete(claims).where(claims.c.scope == scope, claims.c.slot.in_(slots)))


def drop_at_rest(connection: Connection, run_id: str) -> None:
    """Gives everything back if the run rests or waits, and no group of it is left."""
    state = connection.scalar(select(runs.c.state).where(runs.c.id == run_id))
    if state in AT_REST and not _has_hosts(connection, run_id):
        connection.execute(delete(claims).where(claims.c.run_id == run_id))


def drop_unfit(connection: Connection, run_id: str, provider: str, hosts: int) -> None:
    """Gives everything back if the run has no group left, and wants more than it has claims for.

    Whoever waits with claims that do not suffice may wait for somebody who waits for them.
    """
    mine = claims.c.run_id == run_id
    fit = select(func.count()).where(mine, claims.c.scope == provider_scope(provider))
    if (connection.scalar(fit) or 0) < hosts and not _has_hosts(connection, run_id):
        connection.execute(delete(claims).where(mine))


def _has_hosts(connection: Connection, run_id: str) -> bool:
    query = select(host_groups.c.name).where(host_groups.c.run_id == run_id, HELD).limit(1)
    return connection.scalar(query) is not None


# ---- reads -------------------------------------------------------------------------------------


def held(connection: Connection) -> Mapping[str, int]:
    """How many hosts are claimed in each scope."""
    query = select(claims.c.scope, func.count().label("hosts")).group_by(claims.c.scope)
    return {row.scope: row.hosts for row in connection.execute(query)}


def held_by_waiting(
    connection: Connection, others: Collection[str]
) -> Mapping[str, Mapping[str, int]]:
    """The claims of queued runs, which may have kept hosts, and of `others`, by run and scope."""
    found: dict[str, dict[str, int]] = {}
    query = (
        select(claims.c.run_id, claims.c.scope, func.count())
        .join(runs, runs.c.id == claims.c.run_id)
        .where(or_(runs.c.state == RunState.QUEUED, runs.c.id.in_(others)))
        .group_by(claims.c.run_id, claims.c.scope)
    )
    for run_id, scope, number in connection.execute(query):
        found.setdefault(run_id, {})[scope] = number
    return found


def holders(connection: Connection, scope: str, but: str) -> list[Holder]:
    """Who holds hosts in the scope, without the run `but`."""
    query = (
        select(runs.c.name, func.count())
        .join(claims, claims.c.run_id == runs.c.id)
        .where(claims.c.scope == scope, runs.c.id != but)
        .group_by(runs.c.name)
    )
    return [Holder(name, number) for name, number in connection.execute(query)]


def mark(connection: Connection) -> tuple[object, ...]:
    """Changes with every claim and with every run that enters, leaves or moves in the queue."""
    queued = select(func.count(), func.sum(runs.c.revision), func.max(runs.c.queued_at)).where(
        runs.c.state == RunState.QUEUED, runs.c.desired == Desired.RUN
    )
    taken = select(func.count(), func.max(claims.c.claimed_at))
    return (*connection.execute(queued).one(), *connection.execute(taken).one())
