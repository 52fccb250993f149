"""The look at a run that a decision rests on: every row that it sees, joined with the probes.

Done several times a second, so each statement is built once, with the runs' ids left open: building
one anew costs more than running it. Most of the rest is the price of a statement too, whatever it
finds, so that several runs are looked at together where nobody waits for one of them.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    or_,
    select,
)

from orchestrator.providers.base import GroupProbe, HostProbe
from orchestrator.reconcile import limits
from orchestrator.reconcile.revising import REVISABLE
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Checkpoint, Host, HostGroup, Incident, Trainer
from orchestrator.state import USABLE_CHECKPOINTS
from orchestrator.store import drains, giving_up, reads, rows, upcasters
from orchestrator.store.tables import (
    attempts,
    checkpoints,
    host_groups,
    hosts,
    incidents,
    revisions,
    runs,
    trainers,
)
from worker.protocol import AnySpec, DataPlan

MAX_CHECKPOINTS = 20
NO_LIMIT = 2**62  # of steps

_ids: BindParameter[Any] = bindparam("runs", expanding=True)
_RUNS = (
    select(runs, revisions.c.spec_version, revisions.c.spec)
    .join_from(
        runs,
        revisions,
        and_(revisions.c.run_id == runs.c.id, revisions.c.number == runs.c.revision),
        isouter=True,
    )
    .where(runs.c.id.in_(_ids))
)
_GROUPS = (
    select(host_groups).where(host_groups.c.run_id.in_(_ids)).order_by(host_groups.c.generation)
)
_HOSTS = (
    select(hosts)
    .where(hosts.c.group.in_(bindparam("groups", expanding=True)))
    .order_by(hosts.c.group, hosts.c.index)
)
_ATTEMPTS = select(attempts).where(attempts.c.run_id.in_(_ids)).order_by(attempts.c.number)
_TRAINERS = (
    select(trainers)
    .where(
        trainers.c.run_id.in_(_ids),
        trainers.c.attempt.in_(bindparam("numbers", expanding=True)),
    )
    .order_by(trainers.c.attempt, trainers.c.rank)
)
_OPEN_INCIDENTS = (
    select(incidents)
    .where(incidents.c.run_id.in_(_ids), incidents.c.closed_at.is_(None))
    .order_by(incidents.c.number)
)


@dataclass(frozen=True)
class Sighting:
    """A provider's probe of a group, and when it began: what happened since, it cannot show.

    `alive_at` is when the last probe began that saw something live on a host, by the host's index.
    """

    began_at: datetime
    probe: GroupProbe
    alive_at: Mapping[int, datetime] = field(default_factory=dict[int, datetime])


def _no_price(_: AnySpec) -> float | None:
    return None


@dataclass(frozen=True)
class Beside:
    """What a decision sees that lies in no row: the process that decides, and its settings.

    `holds` are how long each provider's hosts outlive a pause; `price_per_hour` is that of a whole
    new host group. `probing_since` is when this process began to ask the providers.
    """

    awake_since: datetime | None = None
    probing_since: datetime | None = None
    host_lost_after: timedelta = timedelta(seconds=30)
    provision_within: timedelta = timedelta(hours=1)
    holds: Mapping[str, timedelta] = field(default_factory=dict[str, timedelta])
    price_per_hour: Callable[[AnySpec], float | None] = _no_price


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
    found = snapshots(connection, (run_id,), now, installation, listening_since, probes, beside)
    return found.get(run_id)


def snapshots(
    connection: Connection,
    run_ids: Collection[str],
    now: datetime,
    installation: str,
    listening_since: datetime,
    probes: Mapping[str, Sighting],
    beside: Beside | None = None,
) -> dict[str, Snapshot]:
    """As `snapshot`, of those of the runs that there are, for little more than the price of one."""
    beside = beside or Beside()
    read = _read(connection, run_ids, now)
    found: dict[str, Snapshot] = {}
    for run_id, row in read.runs.items():
        run, job = rows.run(row), _job(row)
        groups, tried = tuple(read.groups[run_id]), tuple(read.attempts[run_id])
        group = groups[-1] if groups else None
        sighting = probes.get(group.name) if group else None
        if sighting is not None and sighting.probe.hosts:
            sighting = _if_fresh(sighting, now, beside.host_lost_after)
        known = now + beside.host_lost_after
        so_far = limits.used(groups, now)
        branches = read.branches.get(run_id, {})
        line = reads.line(branches, run.branch)
        forgets = job.checkpoint.keep is not None
        found[run_id] = Snapshot(
            now=now,
            installation=installation,
            listening_since=listening_since,
            run=run,
            job=job,
            attempts=tried,
            group=_as_seen(group, sighting) if group else None,
            hosts=_seen_hosts(read.hosts[group.name], sighting, known) if group else (),
            trainers=tuple(read.trainers[run_id]),
            checkpoints=_usable(connection, run_id, tuple(line)),
            incident=read.incidents.get(run_id),
            host_lost_after=beside.host_lost_after,
            provider_hold=beside.holds.get(job.hosts.provider),
            hours_held=so_far.hours,
            cost=so_far.cost,
            price_per_hour=beside.price_per_hour(job),
            awake_since=beside.awake_since,
            probing_since=beside.probing_since,
            groups=groups,
            past_hosts=_past_hosts(read, _recent(tried, now), group),
            data_plan=_data_plan(branches, run.branch),
            kept=giving_up.kept(connection, run_id, line) if forgets else (),
            provision_within=beside.provision_within,
            leave=read.leaving.why(group) if group else None,
        )
    return found


def _recent(tried: Sequence[Attempt], now: datetime) -> list[Attempt]:
    """The last attempt, and those whose verdict may still be revised."""
    return [one for one in tried if one is tried[-1] or _revisable(one, now)]


def _revisable(attempt: Attempt, now: datetime) -> bool:
    return attempt.ended_at is not None and now - attempt.ended_at <= REVISABLE


def _data_plan(branches: Mapping[int, reads.BranchRow], number: int) -> DataPlan | None:
    row = branches.get(number)
    return None if row is None else rows.data_plan(row.data_plan)


# ---- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """What the tables hold of some runs, by run; hosts by their group."""

    runs: Mapping[str, RowMapping]
    groups: Mapping[str, Sequence[HostGroup]]
    attempts: Mapping[str, Sequence[Attempt]]
    branches: Mapping[str, Mapping[int, reads.BranchRow]]
    incidents: Mapping[str, Incident]
    hosts: Mapping[str, Sequence[Host]]
    trainers: Mapping[str, Sequence[Trainer]]
    leaving: drains.Leaving


def _read(connection: Connection, run_ids: Collection[str], now: datetime) -> _Read:
    given = {"runs": list(run_ids)}
    groups: defaultdict[str, list[HostGroup]] = defaultdict(list)
    for row in connection.execute(_GROUPS, given).mappings():
        groups[row["run_id"]].append(rows.group(row))
    tried: defaultdict[str, list[Attempt]] = defaultdict(list)
    for row in connection.execute(_ATTEMPTS, given).mappings():
        tried[row["run_id"]].append(rows.attempt(row))
    recent = [one for of_run in tried.values() for one in _recent(of_run, now)]
    named = {of_run[-1].name for of_run in groups.values()} | {one.group for one in recent}
    open_ones = connection.execute(_OPEN_INCIDENTS, given).mappings()
    return _Read(
        runs={row["id"]: row for row in connection.execute(_RUNS, given).mappings()},
        groups=groups,
        attempts=tried,
        branches=reads.branches_of_all(connection, run_ids),
        incidents={row["run_id"]: rows.incident(row) for row in open_ones},
        hosts=_hosts(connection, named),
        trainers=_trainers(connection, recent),
        leaving=drains.leaving(connection),
    )


def _hosts(connection: Connection, groups: Collection[str]) -> Mapping[str, Sequence[Host]]:
    found: defaultdict[str, list[Host]] = defaultdict(list)
    for row in connection.execute(_HOSTS, {"groups": sorted(groups)}).mappings():
        found[row["group"]].append(rows.host(row))
    return found


def _trainers(
    connection: Connection, of_attempts: Collection[Attempt]
) -> Mapping[str, Sequence[Trainer]]:
    found: defaultdict[str, list[Trainer]] = defaultdict(list)
    wanted = {(one.run_id, one.number) for one in of_attempts}
    names, numbers = {run_id for run_id, _ in wanted}, {number for _, number in wanted}
    given = {"runs": list(names), "numbers": list(numbers)}
    for row in connection.execute(_TRAINERS, given).mappings():
        if (row["run_id"], row["attempt"]) in wanted:
            found[row["run_id"]].append(rows.trainer(row))
    return found


def _job(row: RowMapping) -> AnySpec:
    """The spec of the run's revision, which was read with the run."""
    if row["spec"] is None:
        raise reads.NotFound(f"run {row['id']} has no spec revision {row['revision']}")
    return upcasters.job_spec(row["spec_version"], row["spec"])


def _past_hosts(
    read: _Read, recent: Collection[Attempt], group: HostGroup | None
) -> tuple[Host, ...]:
    past = {one.group for one in recent if group is None or one.group != group.name}
    return tuple(host for name in sorted(past) for host in read.hosts[name])


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
    seen = replace(group, exists=probe.exists, up=probe.ready, again=probe.again)
    if group.taken is not None or probe.taken is None:
        return seen
    return replace(seen, taken=probe.taken, taken_text=probe.words)


def _if_fresh(sighting: Sighting, now: datetime, span: timedelta) -> Sighting:
    """A probe from long ago says nothing of who lives now: its provider can not be asked.

    One from the future is from before the clock was set back, and from before who came since.
    """
    if timedelta(0) <= now - sighting.began_at <= span:
        return sighting
    blind = tuple(
        replace(host, agent_alive=None, trainer_alive=None) for host in sighting.probe.hosts
    )
    return replace(sighting, probe=replace(sighting.probe, hosts=blind))


def _seen_hosts(
    found: Sequence[Host], sighting: Sighting | None, known: datetime
) -> tuple[Host, ...]:
    if sighting is None:
        return tuple(found)
    seen = {probe.index: probe for probe in sighting.probe.hosts}
    return tuple(
        replace(
            _host_as_seen(host, seen.get(host.index), sighting.began_at, known),
            seen_alive_at=sighting.alive_at.get(host.index),
        )
        for host in found
    )


def _host_as_seen(host: Host, probe: HostProbe | None, began: datetime, known: datetime) -> Host:
    """Joins the probe, unless it began before the agent that it would be about.

    An agent that came later than `known` came before the clock was set back, as the probe did not.
    Nor does a probe say that an agent is dead which has reported since it began.
    """
    if probe is None:
        return host
    host = replace(host, address=host.address or probe.address)
    came = (at for at in (host.launched_at, host.registered_at) if at and at <= known)
    newest = max(came, default=None)
    if newest is not None and began <= newest:
        return host
    agent_alive, seen = probe.agent_alive, host.last_seen_at
    if agent_alive is False and seen is not None and began <= seen <= known:
        agent_alive = None
    return replace(host, agent_alive=agent_alive, trainer_alive=probe.trainer_alive)
