"""Reads for alerts: how each run does that trains, stumbles or waits for a person.

Owns what counts as progress, as a late checkpoint's interval and as a failed save there. Some few
statements for all runs together, since it is asked at each scrape. Must not import the API.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
)

from orchestrator.reconcile.budgets import COUNTED
from orchestrator.state import (
    RETRY_CLASS,
    AttemptState,
    Desired,
    GroupState,
    RetryClass,
    RunState,
    Verdict,
)
from orchestrator.store import reads
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import (
    attempts,
    checkpoints,
    events,
    host_groups,
    hosts,
    incidents,
    runs,
    trainers,
)
from worker.protocol import CheckpointSpec, CommandSpec

MOST_RUNS = 500
FAILED_SHOWN = timedelta(days=1)  # a run that failed longer ago is no news to whoever is on call
TRIES = (RunState.STARTING, RunState.RUNNING, RunState.RECOVERING)
TOLD = (RunState.PROVISIONING, *TRIES, RunState.STOPPING, RunState.PAUSED)
TROUBLES = tuple(
    verdict
    for verdict, kind in RETRY_CLASS.items()
    if kind not in (RetryClass.FINISH, RetryClass.OBEY)
)


@dataclass(frozen=True)
class Vital:
    """One run. What is None does not apply to it, or is not known.

    `progress_at` is when a step was completed that no earlier attempt of the branch had completed,
    not before the first attempt that the newest wish led to. `saved_at` is when a checkpoint was
    accepted, or else when the attempt took its first step; the next should follow within
    `save_seconds`. `ends` are failures in a row since the newest accepted step.
    """

    run_id: str
    needs_person: bool
    attempts: int = 0
    ends: int = 0
    slow: bool = False
    slow_hosts: int = 0
    silent_hosts: int = 0
    failed_saves: int = 0
    progress_at: datetime | None = None
    saved_at: datetime | None = None
    save_seconds: float | None = None
    incidents: Mapping[Verdict, int] = field(default_factory=dict[Verdict, int])


class Specs:
    """The cadence of saves of each revision, and whether it is a program of somebody's own.

    A revision never changes, so each is read once.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[CheckpointSpec, bool]] = {}

    def of(self, connection: Connection, run_id: str, revision: int) -> tuple[CheckpointSpec, bool]:
        key = (run_id, revision)
        if key not in self._known:
            job = reads.job_spec(connection, run_id, revision)
            self._known[key] = job.checkpoint, isinstance(job, CommandSpec)
        return self._known[key]

    def keep(self, ids: Collection[str]) -> None:
        """Forgets those of all other runs."""
        self._known = {key: known for key, known in self._known.items() if key[0] in ids}


@dataclass(frozen=True)
class _Around:
    """The rows of some runs, by run; of trainers those of process 0, by attempt."""

    attempts: Mapping[str, Sequence[AnyRow]]
    trainers: Mapping[tuple[str, int], AnyRow]
    slow_hosts: Mapping[tuple[str, int], int]
    silent: Mapping[str, int]
    saved: Mapping[tuple[str, int], datetime]
    failed_saves: Mapping[str, Sequence[AnyRow]]
    incidents: Mapping[str, Counter[Verdict]]


def all_of(
    connection: Connection, now: datetime, silent_since: datetime, specs: Specs
) -> tuple[list[Vital], int]:
    """Those that need a person first, then those in trouble; and how many found no room.

    Hosts that were last heard of before `silent_since` are silent.
    """
    told = _told(now)
    order = (_needs_person().desc(), _well(), runs.c.created_at.desc(), runs.c.id)
    found = connection.execute(
        select(runs, _needs_person().label("waits")).where(told).order_by(*order).limit(MOST_RUNS)
    ).all()
    left_out = 0
    if len(found) == MOST_RUNS:
        number = connection.scalar(select(func.count()).select_from(runs).where(told)) or 0
        left_out = number - len(found)
    around = _around(connection, [run.id for run in found], silent_since)
    specs.keep(around.attempts.keys())
    return [_vital(connection, run, around, specs) for run in found], left_out


def needing_person(connection: Connection, now: datetime) -> int:
    """How many runs wait for somebody, of all there are."""
    query = select(func.count()).select_from(runs).where(_told(now), _needs_person() == 1)
    return connection.scalar(query) or 0


def _told(now: datetime) -> ColumnElement[bool]:
    r = runs.c
    fresh = and_(r.state == RunState.FAILED, r.finished_at > now - FAILED_SHOWN)
    return or_(r.state.in_(TOLD), and_(fresh, _needs_person() == 1))


def _needs_person() -> ColumnElement[int]:
    """1 or 0, as `happenings.needs_person` tells."""
    r = runs.c
    asked = r.desired_generation > r.settled_generation
    failed = and_(r.state == RunState.FAILED, ~and_(asked, r.desired == Desired.RUN))
    paused = and_(r.state == RunState.PAUSED, r.desired == Desired.RUN, ~asked)
    return case((or_(failed, paused), 1), else_=0)


def _well() -> ColumnElement[int]:
    return case((runs.c.state == RunState.RUNNING, 1), (runs.c.state.in_(TRIES), 0), else_=2)


# ---- rows ----------------------------------------------------------------------------------------


def _around(connection: Connection, ids: Sequence[str], silent_since: datetime) -> _Around:
    tried: defaultdict[str, list[AnyRow]] = defaultdict(list)
    a = attempts.c
    query = select(attempts).where(a.run_id.in_(ids)).order_by(a.run_id, a.number)
    for row in connection.execute(query):
        tried[row.run_id].append(row)
    t = trainers.c
    mine = select(t.run_id, t.attempt, t.last_step, t.last_step_at, t.pace_seconds)
    firsts = connection.execute(mine.where(t.run_id.in_(ids), t.rank == 0))
    return _Around(
        attempts=tried,
        trainers={(row.run_id, row.attempt): row for row in firsts},
        slow_hosts=_slow_hosts(connection, ids),
        silent=_silent(connection, ids, silent_since),
        saved=_saved(connection, ids),
        failed_saves=_failed_saves(connection, ids),
        incidents=_incidents(connection, ids),
    )


def _slow_hosts(connection: Connection, ids: Sequence[str]) -> Mapping[tuple[str, int], int]:
    t = trainers.c
    named = and_(t.run_id.in_(ids), t.slow_why.is_not(None))
    query = select(t.run_id, t.attempt, func.count()).where(named).group_by(t.run_id, t.attempt)
    return {(run_id, number): count for run_id, number, count in connection.execute(query)}


def _silent(connection: Connection, ids: Sequence[str], since: datetime) -> Mapping[str, int]:
    g, h = host_groups.c, hosts.c
    query = (
        select(g.run_id, func.count().label("number"))
        .join(hosts, h.group == g.name)
        .where(g.run_id.in_(ids), g.state == GroupState.READY, h.last_seen_at < since)
        .group_by(g.run_id)
    )
    return {row.run_id: row.number for row in connection.execute(query)}


def _saved(connection: Connection, ids: Sequence[str]) -> Mapping[tuple[str, int], datetime]:
    """When each attempt's newest checkpoint was accepted, found by its derived id: a run may have
    thousands of them."""
    a, c = attempts.c, checkpoints.c
    newest = literal("a") + cast(a.number, String) + "-s" + cast(a.accepted_step, String)
    query = (
        select(a.run_id, a.number, c.accepted_at)
        .join(checkpoints, and_(c.run_id == a.run_id, c.id == newest))
        .where(a.run_id.in_(ids), a.accepted_step.is_not(None), c.accepted_at.is_not(None))
    )
    return {(run_id, number): at for run_id, number, at in connection.execute(query)}


def _failed_saves(connection: Connection, ids: Sequence[str]) -> Mapping[str, Sequence[AnyRow]]:
    """Few at any age of a run: an attempt ends after some in a row."""
    e = events.c
    query = select(e.run_id, e.attempt, e.rank, e.at)
    found: defaultdict[str, list[AnyRow]] = defaultdict(list)
    for row in connection.execute(query.where(e.run_id.in_(ids), e.kind == "save_failed")):
        found[row.run_id].append(row)
    return found


def _incidents(connection: Connection, ids: Sequence[str]) -> Mapping[str, Counter[Verdict]]:
    i = incidents.c
    query = select(i.run_id, i.verdict, func.count()).where(
        i.run_id.in_(ids), i.verdict.in_(TROUBLES)
    )
    found: defaultdict[str, Counter[Verdict]] = defaultdict(Counter)
    for run_id, verdict, count in connection.execute(query.group_by(i.run_id, i.verdict)):
        found[run_id][Verdict(verdict)] = count
    return found


# ---- one run -------------------------------------------------------------------------------------


def _vital(connection: Connection, run: AnyRow, around: _Around, specs: Specs) -> Vital:
    tried = around.attempts.get(run.id, ())
    counts = around.incidents.get(run.id, Counter())
    begun = Vital(
        run_id=run.id,
        needs_person=bool(run.waits),
        attempts=len(tried),
        ends=_ends(tried),
        incidents={verdict: counts[verdict] for verdict in TROUBLES},
    )
    if run.state not in TRIES or not tried:
        return begun
    last = tried[-1]
    key = (run.id, last.number)
    trains = last.state == AttemptState.RUNNING
    cadence, is_program = specs.of(connection, run.id, last.revision)
    interval = _interval(cadence, last, around.trainers.get(key)) if trains else None
    saved = around.saved.get(key) or last.first_step_at
    return replace(
        begun,
        slow=trains and last.slow_why is not None,
        slow_hosts=around.slow_hosts.get(key, 0) if trains else 0,
        silent_hosts=around.silent.get(run.id, 0),
        failed_saves=_in_a_row(around.failed_saves.get(run.id, ()), last.number, saved),
        progress_at=_progress_at(tried, around, is_program),
        saved_at=saved if interval is not None else None,
        save_seconds=interval,
    )


def _ends(tried: Sequence[AnyRow]) -> int:
    """Under the newest wish, after the last attempt that brought a new highest accepted step."""
    best = ends = 0
    for row in tried:
        if (row.accepted_step or 0) > best:
            best, ends = row.accepted_step, 0
        if row.desired_generation == tried[-1].desired_generation and row.verdict is not None:
            ends += RETRY_CLASS[Verdict(row.verdict)] in COUNTED
    return ends


def _progress_at(tried: Sequence[AnyRow], around: _Around, is_program: bool) -> datetime | None:
    """None for a program that tells neither steps nor checkpoints: nothing can be said of it."""
    highest: dict[int, int] = {}
    found: list[datetime] = []
    for row in tried:
        told = around.trainers.get((row.run_id, row.number))
        if told is not None and told.last_step is not None:
            new = told.last_step > highest.get(row.branch, row.resumed_from_step)
            highest[row.branch] = max(highest.get(row.branch, 0), told.last_step)
            if new and told.last_step_at is not None:
                found.append(told.last_step_at)
        if (row.run_id, row.number) in around.saved:
            found.append(around.saved[row.run_id, row.number])
    if not found and is_program:
        return None
    wish = tried[-1].desired_generation
    found.append(next(row.created_at for row in tried if row.desired_generation == wish))
    return max(found)


def _in_a_row(failed: Sequence[AnyRow], attempt: int, saved: datetime | None) -> int:
    """Of the host that failed most often since the last accepted checkpoint."""
    since = Counter(
        row.rank for row in failed if row.attempt == attempt and (saved is None or row.at > saved)
    )
    return max(since.values(), default=0)


def _interval(cadence: CheckpointSpec, attempt: AnyRow, told: AnyRow | None) -> float | None:
    """Seconds from one save to the next, as the run's own spec and pace have it."""
    step = None if told is None else told.pace_seconds or _mean_step(attempt, told)
    by_steps = cadence.every_steps * step if cadence.every_steps and step else None
    return min((s for s in (attempt.save_seconds, by_steps) if s is not None), default=None)


def _mean_step(attempt: AnyRow, told: AnyRow) -> float | None:
    """Before a pace is told: over the attempt so far."""
    if attempt.first_step_at is None or told.last_step_at is None or told.last_step is None:
        return None
    steps = told.last_step - attempt.resumed_from_step - 1
    seconds = (told.last_step_at - attempt.first_step_at).total_seconds()
    return seconds / steps if steps > 0 and seconds > 0 else None
