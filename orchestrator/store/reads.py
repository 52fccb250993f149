"""What the loop and the agents' API read: which runs need a decision, what a trainer is told.

Reads no metric, event or log rows, so that it costs the same at any age of the run. What a decision
sees is read in `looks.py`, what people see in `views.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, exists, or_, select

from orchestrator.reconcile.revising import REVISABLE
from orchestrator.records import INHERITED, Attempt
from orchestrator.state import (
    TERMINAL_RUNS,
    USABLE_CHECKPOINTS,
    Desired,
    GroupState,
    RunState,
)
from orchestrator.store import rows, upcasters
from orchestrator.store.conditions import CURRENT, HELD
from orchestrator.store.tables import (
    UNTOLD_REPLAY,
    attempts,
    branches,
    checkpoints,
    host_groups,
    hosts,
    revisions,
    runs,
)
from worker.protocol import AnySpec, AttemptSpec, DataPlan, ResumePoint

RESTING = (RunState.PAUSED, *sorted(TERMINAL_RUNS))


class NotFound(Exception):
    """A row that the caller took for granted is not there."""


@dataclass(frozen=True)
class Active:
    """A run that may need a decision, and the newest wish, whose change makes one due at once."""

    id: str
    desired_generation: int


def active_runs(connection: Connection) -> list[str]:
    return [run.id for run in active(connection)]


def active(connection: Connection, now: datetime | None = None) -> list[Active]:
    """Every run that the loop must look at, oldest first.

    A resting run counts while it holds hosts, when there is a wish that it does not answer yet,
    when steps that it trained again are found to differ and no incident tells of it, and, where
    `now` is given, while the verdict that it rests for may still be revised.
    """
    holds = exists().where(host_groups.c.run_id == runs.c.id, HELD)
    newer_wish = runs.c.desired_generation > runs.c.settled_generation
    wanted = and_(runs.c.state.in_((RunState.PAUSED, RunState.FAILED)), newer_wish)
    cancel = and_(runs.c.state == RunState.PAUSED, runs.c.desired == Desired.CANCEL)
    differs = runs.c.id.in_(select(attempts.c.run_id).where(UNTOLD_REPLAY))
    causes = [runs.c.state.not_in(RESTING), holds, wanted, cancel, differs]
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
        .where(HELD)
        .order_by(host_groups.c.name)
    )
    return [(name, provider, run_id) for name, provider, run_id in found]


_SILENT = (
    select(host_groups.c.run_id)
    .join(hosts, hosts.c.group == host_groups.c.name)
    .where(host_groups.c.state == GroupState.READY, hosts.c.last_seen_at < bindparam("since"))
)


def silent_runs(connection: Connection, since: datetime) -> set[str]:
    """The runs with a host that stands and was last heard of before `since`."""
    return set(connection.scalars(_SILENT, {"since": since}))


_SPEC = select(revisions.c.spec_version, revisions.c.spec).where(
    revisions.c.run_id == bindparam("run"), revisions.c.number == bindparam("number")
)


def job_spec(connection: Connection, run_id: str, revision: int) -> AnySpec:
    """Raises `NotFound`, or `upcasters.SpecTooNew`."""
    row = connection.execute(_SPEC, {"run": run_id, "number": revision}).one_or_none()
    if row is None:
        raise NotFound(f"run {run_id} has no spec revision {revision}")
    return upcasters.job_spec(row.spec_version, row.spec)


def attempt_storage(storage_root: str, run_id: str, number: int) -> str:
    """The attempt's own directory: no other attempt writes there."""
    return f"{storage_root.rstrip('/')}/runs/{run_id}/a{number}"


_ATTEMPT = select(attempts).where(
    attempts.c.run_id == bindparam("run"), attempts.c.number == bindparam("number")
)


def attempt_spec(
    connection: Connection, run_id: str, number: int, storage_root: str
) -> AttemptSpec:
    """What every trainer of the attempt is told; the same rows give the same bytes."""
    found = connection.execute(_ATTEMPT, {"run": run_id, "number": number})
    row = found.mappings().one_or_none()
    if row is None:
        raise NotFound(f"run {run_id} has no attempt {number}")
    attempt = rows.attempt(row)
    return AttemptSpec(
        run_id=run_id,
        attempt=number,
        branch=attempt.branch,
        revision=attempt.revision,
        job=job_spec(connection, run_id, attempt.revision),
        data_plan=data_plan(connection, run_id, attempt.branch),
        storage=attempt_storage(storage_root, run_id, number),
        resume=_resume_point(connection, attempt),
        process_count=attempt.processes,
        coordinator=attempt.coordinator,
        save_every_seconds=attempt.save_seconds,
    )


_PLAN = select(branches.c.data_plan).where(
    branches.c.run_id == bindparam("run"), branches.c.number == bindparam("number")
)


def data_plan(connection: Connection, run_id: str, branch: int) -> DataPlan:
    text = connection.scalar(_PLAN, {"run": run_id, "number": branch})
    if text is None:
        raise NotFound(f"run {run_id} has no branch {branch}")
    return rows.data_plan(text)


def _resume_point(connection: Connection, attempt: Attempt) -> ResumePoint | None:
    if attempt.resume_checkpoint is None:
        return None
    row = connection.execute(
        select(checkpoints).where(
            checkpoints.c.run_id == attempt.run_id, checkpoints.c.id == attempt.resume_checkpoint
        )
    ).one()
    inherited = row.attempt == INHERITED
    return _point(row, inherited and has_other_data(connection, attempt.run_id, row.branch))


def _point(row: rows.AnyRow, other_data: bool) -> ResumePoint:
    return ResumePoint(
        checkpoint_id=row.id,
        step=row.step,
        uri=row.uri,
        manifest_sha256=row.manifest_sha256,
        other_data=other_data,
    )


def newest_points(connection: Connection, made: Collection[Attempt]) -> Mapping[str, ResumePoint]:
    """By run, what an attempt that followed now would begin with, as a rule: the last checkpoint of
    this one that counts, else its own beginning."""
    found: dict[str, ResumePoint] = {}
    for attempt in made:
        given = {"run": attempt.run_id, "number": attempt.number}
        row = connection.execute(_NEWEST_OF, given).one_or_none()
        point = _resume_point(connection, attempt) if row is None else _point(row, False)
        if point is not None:
            found[attempt.run_id] = point
    return found


_NEWEST_OF = (
    select(checkpoints)
    .where(
        checkpoints.c.run_id == bindparam("run"),
        checkpoints.c.attempt == bindparam("number"),
        or_(*(checkpoints.c.state == state for state in USABLE_CHECKPOINTS)),
    )
    .order_by(checkpoints.c.step.desc())
    .limit(1)
)


def has_other_data(connection: Connection, run_id: str, branch: int) -> bool:
    """Whether the branch is a fork's that reads other data than its first checkpoint knows."""
    b = branches.c
    query = select(b.other_data).where(b.run_id == run_id, b.number == branch)
    return bool(connection.scalar(query))


@dataclass(frozen=True)
class BranchRow:
    """Where a branch left its parent, and its data plan as the row spells it."""

    parent: int | None
    from_step: int
    data_plan: str


_BRANCHES = select(
    branches.c.run_id,
    branches.c.number,
    branches.c.parent,
    branches.c.from_step,
    branches.c.data_plan,
).where(branches.c.run_id.in_(bindparam("runs", expanding=True)))


def branches_of_all(
    connection: Connection, run_ids: Collection[str]
) -> Mapping[str, Mapping[int, BranchRow]]:
    """Every branch of these runs, by run and number."""
    found: defaultdict[str, dict[int, BranchRow]] = defaultdict(dict)
    for run_id, number, *of in connection.execute(_BRANCHES, {"runs": list(run_ids)}):
        found[run_id][number] = BranchRow(*of)
    return found


def branches_of(connection: Connection, run_id: str) -> Mapping[int, BranchRow]:
    """Every branch of the run by its number."""
    return branches_of_all(connection, (run_id,)).get(run_id, {})


def lineage(connection: Connection, run_id: str, branch: int) -> list[tuple[int, int | None]]:
    """The branch and its ancestors, each with the highest step that still belongs to the line."""
    return line(branches_of(connection, run_id), branch)


def line(known: Mapping[int, BranchRow], branch: int) -> list[tuple[int, int | None]]:
    """As `lineage`, of branches that are known already."""
    found: list[tuple[int, int | None]] = [(branch, None)]
    here, limit = known.get(branch), None
    while here is not None and here.parent is not None and len(found) <= len(known):
        limit = here.from_step if limit is None else min(limit, here.from_step)
        found.append((here.parent, limit))
        here = known.get(here.parent)
    return found


def current_attempt(connection: Connection, run_id: str) -> Attempt | None:
    """The attempt that has not ended, if one is."""
    query = select(attempts).where(attempts.c.run_id == run_id, CURRENT)
    row = connection.execute(query).mappings().one_or_none()
    return rows.attempt(row) if row else None
