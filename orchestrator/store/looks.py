"""The look at a run that a decision rests on: every row that it sees, joined with the probes.

Done several times a second, so each statement is built once, with the run's id left open: building
one anew costs more than running it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, and_, bindparam, or_, select

from orchestrator.providers.base import GroupProbe, HostProbe
from orchestrator.reconcile.revising import REVISABLE
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Checkpoint, Host, HostGroup, Incident, Run, Trainer
from orchestrator.state import USABLE_CHECKPOINTS
from orchestrator.store import reads, rows
from orchestrator.store.tables import (
    attempts,
    checkpoints,
    host_groups,
    hosts,
    incidents,
    runs,
    trainers,
)
from worker.protocol import DataPlan, JobSpec

MAX_CHECKPOINTS = 20
NO_LIMIT = 2**62  # of steps

_RUN = select(runs).where(runs.c.id == bindparam("run"))
_GROUPS = (
    select(host_groups)
    .where(host_groups.c.run_id == bindparam("run"))
    .order_by(host_groups.c.generation)
)
_HOSTS = select(hosts).where(hosts.c.group == bindparam("group")).order_by(hosts.c.index)
_ATTEMPTS = (
    select(attempts).where(attempts.c.run_id == bindparam("run")).order_by(attempts.c.number)
)
_TRAINERS = (
    select(trainers)
    .where(trainers.c.run_id == bindparam("run"), trainers.c.attempt >= bindparam("first"))
    .order_by(trainers.c.attempt, trainers.c.rank)
)
_OPEN_INCIDENT = (
    select(incidents)
    .where(incidents.c.run_id == bindparam("run"), incidents.c.closed_at.is_(None))
    .order_by(incidents.c.number.desc())
    .limit(1)
)


@dataclass(frozen=True)
class Sighting:
    """A provider's probe of a group, and when it began: what happened since, it cannot show."""

    began_at: datetime
    probe: GroupProbe


def _no_price(_: JobSpec) -> float | None:
    return None


@dataclass(frozen=True)
class Beside:
    """What a decision sees that lies in no row: the process that decides, and its settings.

    `holds` are how long each provider's hosts outlive a pause; `price_per_hour` is that of a whole
    new host group.
    """

    awake_since: datetime | None = None
    host_lost_after: timedelta = timedelta(seconds=30)
    provision_within: timedelta = timedelta(hours=1)
    holds: Mapping[str, timedelta] = field(default_factory=dict[str, timedelta])
    price_per_hour: Callable[[JobSpec], float | None] = _no_price


def snapshot(
    connection: Connection,
    run_id: str,
    now: datetime,
    installation: str,
    listening_since: datetime,
    probes: Mapping[str, Sighting],
    beside: Beside | None = None,
) -> Snapshot | None:
    """Everything that a decision about the run sees; None when there is no such run."""
    run, beside = _run(connection, run_id), beside or Beside()
    if run is None:
        return None
    groups = _groups(connection, run_id)
    group = groups[-1] if groups else None
    sighting = probes.get(group.name) if group else None
    if sighting is not None and sighting.probe.hosts:
        sighting = _if_fresh(sighting, now - beside.host_lost_after)
    tried = _attempts(connection, run_id)
    recent = [one for one in tried if one is tried[-1] or _revisable(one, now)]
    hours, cost = _used(groups, now)
    job = reads.job_spec(connection, run_id, run.revision)
    branches = reads.branches_of(connection, run_id)
    return Snapshot(
        now=now,
        installation=installation,
        listening_since=listening_since,
        run=run,
        job=job,
        attempts=tried,
        group=_as_seen(group, sighting) if group else None,
        hosts=_seen_hosts(connection, group.name, sighting) if group else (),
        trainers=_trainers(connection, run_id, recent[0].number) if recent else (),
        checkpoints=_usable(connection, run_id, tuple(reads.line(branches, run.branch))),
        incident=_open_incident(connection, run_id),
        host_lost_after=beside.host_lost_after,
        provider_hold=beside.holds.get(job.hosts.provider),
        hours_held=hours,
        cost=cost,
        price_per_hour=beside.price_per_hour(job),
        awake_since=beside.awake_since,
        groups=groups,
        past_hosts=_past_hosts(connection, {one.group for one in recent}, group),
        data_plan=_data_plan(branches, run.branch),
        provision_within=beside.provision_within,
    )


def _revisable(attempt: Attempt, now: datetime) -> bool:
    return attempt.ended_at is not None and now - attempt.ended_at <= REVISABLE


def _used(groups: Collection[HostGroup], now: datetime) -> tuple[float, float]:
    """Hours that the run has held hosts over its whole life, and what they cost."""
    hours, cost = 0.0, 0.0
    for group in groups:
        if group.ready_at is not None:
            held = ((group.released_at or now) - group.ready_at) / timedelta(hours=1)
            hours += max(0.0, held)
            cost += max(0.0, held) * (group.price_per_hour or 0.0)
    return hours, cost


def _data_plan(branches: Mapping[int, reads.BranchRow], number: int) -> DataPlan | None:
    row = branches.get(number)
    return None if row is None else rows.data_plan(row.data_plan)


# ---- rows ----------------------------------------------------------------------------------------


def _run(connection: Connection, run_id: str) -> Run | None:
    row = connection.execute(_RUN, {"run": run_id}).mappings().one_or_none()
    return None if row is None else rows.run(row)


def _groups(connection: Connection, run_id: str) -> tuple[HostGroup, ...]:
    found = connection.execute(_GROUPS, {"run": run_id})
    return tuple(map(rows.group, found.mappings()))


def _hosts(connection: Connection, group: str) -> tuple[Host, ...]:
    found = connection.execute(_HOSTS, {"group": group})
    return tuple(map(rows.host, found.mappings()))


def _past_hosts(
    connection: Connection, names: Collection[str], group: HostGroup | None
) -> tuple[Host, ...]:
    past = sorted(name for name in names if group is None or name != group.name)
    return tuple(host for name in past for host in _hosts(connection, name))


def _attempts(connection: Connection, run_id: str) -> tuple[Attempt, ...]:
    found = connection.execute(_ATTEMPTS, {"run": run_id})
    return tuple(map(rows.attempt, found.mappings()))


def _trainers(connection: Connection, run_id: str, first: int) -> tuple[Trainer, ...]:
    """Those of attempt `first` and of all after it."""
    found = connection.execute(_TRAINERS, {"run": run_id, "first": first})
    return tuple(map(rows.trainer, found.mappings()))


def _open_incident(connection: Connection, run_id: str) -> Incident | None:
    row = connection.execute(_OPEN_INCIDENT, {"run": run_id}).mappings().one_or_none()
    return rows.incident(row) if row else None


def _usable(
    connection: Connection, run_id: str, line: tuple[tuple[int, int | None], ...]
) -> tuple[Checkpoint, ...]:
    """The newest that a resume may use, on the branch and on its ancestors up to each fork."""
    given: dict[str, object] = {"run": run_id}
    for index, (branch, limit) in enumerate(line):
        given |= {f"branch{index}": branch, f"limit{index}": NO_LIMIT if limit is None else limit}
    found = connection.execute(_usable_of_line(len(line)), given)
    return tuple(map(rows.checkpoint, found.mappings()))


@functools.lru_cache(maxsize=64)
def _usable_of_line(length: int) -> Select[*tuple[Any, ...]]:
    c = checkpoints.c
    parts = (
        and_(
            c.branch == bindparam(f"branch{index}"),
            c.step <= bindparam(f"limit{index}", type_=BigInteger),
        )
        for index in range(length)
    )
    usable = or_(*(c.state == state for state in USABLE_CHECKPOINTS))
    return (
        select(checkpoints)
        .where(c.run_id == bindparam("run"), usable, or_(*parts))
        .order_by(c.step.desc(), c.attempt.desc())
        .limit(MAX_CHECKPOINTS)
    )


# ---- joined with the probes ----------------------------------------------------------------------


def _as_seen(group: HostGroup, sighting: Sighting | None) -> HostGroup:
    if sighting is None:
        return group
    probe = sighting.probe
    seen = replace(group, exists=probe.exists, up=probe.ready)
    if group.taken is not None or probe.taken is None:
        return seen
    return replace(seen, taken=probe.taken, taken_text=probe.words)


def _if_fresh(sighting: Sighting, oldest: datetime) -> Sighting:
    """A probe from long ago says nothing of who lives now: its provider can not be asked."""
    if sighting.began_at >= oldest:
        return sighting
    blind = tuple(
        replace(host, agent_alive=None, trainer_alive=None) for host in sighting.probe.hosts
    )
    return replace(sighting, probe=replace(sighting.probe, hosts=blind))


def _seen_hosts(connection: Connection, group: str, sighting: Sighting | None) -> tuple[Host, ...]:
    seen = {probe.index: probe for probe in sighting.probe.hosts} if sighting else {}
    began = sighting.began_at if sighting else None
    found = _hosts(connection, group)
    return tuple(_host_as_seen(host, seen.get(host.index), began) for host in found)


def _host_as_seen(host: Host, probe: HostProbe | None, began: datetime | None) -> Host:
    """Joins the probe, unless it began before the agent that it would be about."""
    if probe is None or began is None:
        return host
    host = replace(host, address=host.address or probe.address)
    newest = max((at for at in (host.launched_at, host.registered_at) if at), default=None)
    if newest is not None and began <= newest:
        return host
    return replace(host, agent_alive=probe.agent_alive, trainer_alive=probe.trainer_alive)
