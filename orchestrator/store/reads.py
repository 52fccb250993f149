"""What the loop and the agents' API read: the runs that need a decision, and all that one sees.

Reads no metric, event or log rows, so that a decision costs the same at any age of the run. What
people see is read elsewhere (`views.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, exists, or_, select

from orchestrator.providers.base import GroupProbe, HostProbe
from orchestrator.reconcile.revising import REVISABLE
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Checkpoint, Host, HostGroup, Incident, Run, Trainer
from orchestrator.state import (
    TERMINAL_RUNS,
    AttemptState,
    CheckpointState,
    Desired,
    GroupState,
    RunState,
)
from orchestrator.store import rows, upcasters
from orchestrator.store.tables import (
    attempts,
    branches,
    checkpoints,
    host_groups,
    hosts,
    incidents,
    revisions,
    runs,
    trainers,
)
from worker.protocol import AttemptSpec, DataPlan, JobSpec, ResumePoint

MAX_CHECKPOINTS = 20
RESTING = (RunState.PAUSED, *sorted(TERMINAL_RUNS))
USABLE = (CheckpointState.ACCEPTED, CheckpointState.VERIFIED)


class NotFound(Exception):
    """A row that the caller took for granted is not there."""


@dataclass(frozen=True)
class Active:
    """A run that may need a decision, and the newest wish, whose change makes one due at once."""

    id: str
    desired_generation: int


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
    holds: Mapping[str, timedelta] = field(default_factory=dict[str, timedelta])
    price_per_hour: Callable[[JobSpec], float | None] = _no_price


def active_runs(connection: Connection) -> list[str]:
    return [run.id for run in active(connection)]


def active(connection: Connection, now: datetime | None = None) -> list[Active]:
    """Every run that the loop must look at, oldest first.

    A resting run counts while it holds hosts, when there is a wish that it does not answer yet,
    and, where `now` is given, while the verdict that it rests for may still be revised.
    """
    holds = exists().where(
        host_groups.c.run_id == runs.c.id, host_groups.c.state != GroupState.GONE
    )
    newer_wish = runs.c.desired_generation > runs.c.settled_generation
    wanted = and_(runs.c.state.in_((RunState.PAUSED, RunState.FAILED)), newer_wish)
    cancel = and_(runs.c.state == RunState.PAUSED, runs.c.desired == Desired.CANCEL)
    causes = [runs.c.state.not_in(RESTING), holds, wanted, cancel]
    if now is not None:
        recent = exists().where(
            attempts.c.run_id == runs.c.id, attempts.c.ended_at >= now - REVISABLE
        )
        causes.append(and_(runs.c.state == RunState.PAUSED, recent))
    found = connection.execute(
        select(runs.c.id, runs.c.desired_generation)
        .where(or_(*causes))
        .order_by(runs.c.created_at, runs.c.id)
    )
    return [Active(run_id, generation) for run_id, generation in found]


def live_groups(connection: Connection) -> list[tuple[str, str, str]]:
    """(name, provider, run id) of every group that a provider may still hold something of."""
    found = connection.execute(
        select(host_groups.c.name, host_groups.c.provider, host_groups.c.run_id)
        .where(host_groups.c.state != GroupState.GONE)
        .order_by(host_groups.c.name)
    )
    return [(name, provider, run_id) for name, provider, run_id in found]


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
    row = connection.execute(select(runs).where(runs.c.id == run_id)).mappings().one_or_none()
    if row is None:
        return None
    run, beside = rows.run(row), beside or Beside()
    groups = _groups(connection, run_id)
    group = groups[-1] if groups else None
    sighting = probes.get(group.name) if group else None
    if sighting is not None and sighting.probe.hosts:
        sighting = _if_fresh(sighting, now - beside.host_lost_after)
    tried = _attempts(connection, run_id)
    recent = [one for one in tried if one is tried[-1] or _revisable(one, now)]
    hours, cost = _used(groups, now)
    job = job_spec(connection, run_id, run.revision)
    return Snapshot(
        now=now,
        installation=installation,
        listening_since=listening_since,
        run=run,
        job=job,
        attempts=tried,
        group=_as_seen(group, sighting) if group else None,
        hosts=_hosts(connection, group.name, sighting) if group else (),
        trainers=_trainers(connection, run_id, [one.number for one in recent]),
        checkpoints=_usable(connection, run),
        incident=_open_incident(connection, run_id),
        host_lost_after=beside.host_lost_after,
        provider_hold=beside.holds.get(job.hosts.provider),
        hours_held=hours,
        cost=cost,
        price_per_hour=beside.price_per_hour(job),
        awake_since=beside.awake_since,
        groups=groups,
        past_hosts=_past_hosts(connection, {one.group for one in recent}, group),
        data_plan=_plan_of_branch(connection, run_id, run.branch),
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


def job_spec(connection: Connection, run_id: str, revision: int) -> JobSpec:
    """Raises `NotFound`, or `upcasters.SpecTooNew`."""
    row = connection.execute(
        select(revisions.c.spec_version, revisions.c.spec).where(
            revisions.c.run_id == run_id, revisions.c.number == revision
        )
    ).one_or_none()
    if row is None:
        raise NotFound(f"run {run_id} has no spec revision {revision}")
    return upcasters.job_spec(row.spec_version, row.spec)


def attempt_storage(storage_root: str, run_id: str, number: int) -> str:
    """The attempt's own directory: no other attempt writes there."""
    return f"{storage_root.rstrip('/')}/runs/{run_id}/a{number}"


def attempt_spec(
    connection: Connection, run_id: str, number: int, storage_root: str
) -> AttemptSpec:
    """What every trainer of the attempt is told; the same rows give the same bytes."""
    row = (
        connection.execute(
            select(attempts).where(attempts.c.run_id == run_id, attempts.c.number == number)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise NotFound(f"run {run_id} has no attempt {number}")
    attempt = rows.attempt(row)
    return AttemptSpec(
        run_id=run_id,
        attempt=number,
        branch=attempt.branch,
        revision=attempt.revision,
        job=job_spec(connection, run_id, attempt.revision),
        data_plan=_data_plan(connection, run_id, attempt.branch),
        storage=attempt_storage(storage_root, run_id, number),
        resume=_resume_point(connection, attempt),
        process_count=attempt.processes,
        coordinator=attempt.coordinator,
    )


def _data_plan(connection: Connection, run_id: str, branch: int) -> DataPlan:
    plan = _plan_of_branch(connection, run_id, branch)
    if plan is None:
        raise NotFound(f"run {run_id} has no branch {branch}")
    return plan


def _plan_of_branch(connection: Connection, run_id: str, branch: int) -> DataPlan | None:
    text = connection.scalar(
        select(branches.c.data_plan).where(branches.c.run_id == run_id, branches.c.number == branch)
    )
    return None if text is None else rows.data_plan(text)


def _resume_point(connection: Connection, attempt: Attempt) -> ResumePoint | None:
    if attempt.resume_checkpoint is None:
        return None
    row = connection.execute(
        select(checkpoints).where(
            checkpoints.c.run_id == attempt.run_id, checkpoints.c.id == attempt.resume_checkpoint
        )
    ).one()
    return ResumePoint(
        checkpoint_id=row.id,
        step=row.step,
        uri=row.uri,
        manifest_sha256=row.manifest_sha256,
        other_data=row.attempt == 0 and has_other_data(connection, attempt.run_id, row.branch),
    )


def has_other_data(connection: Connection, run_id: str, branch: int) -> bool:
    """Whether the branch is a fork's that reads other data than its first checkpoint knows."""
    b = branches.c
    query = select(b.other_data).where(b.run_id == run_id, b.number == branch)
    return bool(connection.scalar(query))


def _groups(connection: Connection, run_id: str) -> tuple[HostGroup, ...]:
    found = connection.execute(
        select(host_groups).where(host_groups.c.run_id == run_id).order_by(host_groups.c.generation)
    )
    return tuple(map(rows.group, found.mappings()))


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


def _past_hosts(
    connection: Connection, names: Collection[str], group: HostGroup | None
) -> tuple[Host, ...]:
    past = sorted(name for name in names if group is None or name != group.name)
    if not past:
        return ()
    found = connection.execute(
        select(hosts).where(hosts.c.group.in_(past)).order_by(hosts.c.group, hosts.c.index)
    )
    return tuple(map(rows.host, found.mappings()))


def _hosts(connection: Connection, group: str, sighting: Sighting | None) -> tuple[Host, ...]:
    found = connection.execute(select(hosts).where(hosts.c.group == group).order_by(hosts.c.index))
    seen = {probe.index: probe for probe in sighting.probe.hosts} if sighting else {}
    began = sighting.began_at if sighting else None
    return tuple(
        _host_as_seen(host, seen.get(host.index), began)
        for host in map(rows.host, found.mappings())
    )


def _host_as_seen(host: Host, probe: HostProbe | None, began: datetime | None) -> Host:
    """Joins the probe, unless it began before the agent that it would be about."""
    if probe is None or began is None:
        return host
    host = replace(host, address=host.address or probe.address)
    newest = max((at for at in (host.launched_at, host.registered_at) if at), default=None)
    if newest is not None and began <= newest:
        return host
    return replace(host, agent_alive=probe.agent_alive, trainer_alive=probe.trainer_alive)


def _attempts(connection: Connection, run_id: str) -> tuple[Attempt, ...]:
    found = connection.execute(
        select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.number)
    )
    return tuple(map(rows.attempt, found.mappings()))


def _trainers(connection: Connection, run_id: str, numbers: Collection[int]) -> tuple[Trainer, ...]:
    if not numbers:
        return ()
    found = connection.execute(
        select(trainers)
        .where(trainers.c.run_id == run_id, trainers.c.attempt.in_(numbers))
        .order_by(trainers.c.attempt, trainers.c.rank)
    )
    return tuple(map(rows.trainer, found.mappings()))


def _open_incident(connection: Connection, run_id: str) -> Incident | None:
    row = (
        connection.execute(
            select(incidents)
            .where(incidents.c.run_id == run_id, incidents.c.closed_at.is_(None))
            .order_by(incidents.c.number.desc())
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    return rows.incident(row) if row else None


def _usable(connection: Connection, run: Run) -> tuple[Checkpoint, ...]:
    """The newest that a resume may use, on the branch and on its ancestors up to each fork."""
    parts = [
        and_(checkpoints.c.branch == number, checkpoints.c.step <= limit)
        if limit is not None
        else checkpoints.c.branch == number
        for number, limit in lineage(connection, run.id, run.branch)
    ]
    found = connection.execute(
        select(checkpoints)
        .where(checkpoints.c.run_id == run.id, checkpoints.c.state.in_(USABLE), or_(*parts))
        .order_by(checkpoints.c.step.desc(), checkpoints.c.attempt.desc())
        .limit(MAX_CHECKPOINTS)
    )
    return tuple(map(rows.checkpoint, found.mappings()))


def lineage(connection: Connection, run_id: str, branch: int) -> list[tuple[int, int | None]]:
    """The branch and its ancestors, each with the highest step that still belongs to the line."""
    found = connection.execute(
        select(branches.c.number, branches.c.parent, branches.c.from_step).where(
            branches.c.run_id == run_id
        )
    )
    known = {number: (parent, from_step) for number, parent, from_step in found}
    line: list[tuple[int, int | None]] = [(branch, None)]
    parent, limit = known.get(branch, (None, 0))
    while parent is not None and len(line) <= len(known):
        line.append((parent, limit))
        parent, from_step = known[parent]
        limit = min(limit, from_step)
    return line


def current_attempt(connection: Connection, run_id: str) -> Attempt | None:
    """The attempt that has not ended, if one is."""
    query = select(attempts).where(
        attempts.c.run_id == run_id, attempts.c.state != AttemptState.ENDED
    )
    row = connection.execute(query).mappings().one_or_none()
    return rows.attempt(row) if row else None
