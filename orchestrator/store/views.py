"""Reads for people: rows of runs and of what belongs to them.

Owns the queries behind the API's pages; what they mean is told by `api.views`. Must not import the
API, and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, func, or_, select

from orchestrator.ledger.goodput import AttemptTime, RunTime, Span
from orchestrator.state import CheckpointState, RunState
from orchestrator.store.history import told
from orchestrator.store.tables import (
    EPOCH,
    attempts,
    checkpoints,
    evals,
    events,
    host_groups,
    hosts,
    incidents,
    log_lines,
    metric_points,
    revisions,
    runs,
    trainers,
)
from orchestrator.store.upcasters import job_spec
from worker.protocol import JobSpec

AnyRow = Row[*tuple[Any, ...]]
MICROSECOND = timedelta(microseconds=1)
RUN_MOVED = "run_moved"  # the timeline's word for a move of the run's state
RESTING = frozenset({RunState.PAUSED, RunState.FAILED})


@dataclass(frozen=True)
class Place:
    """Where a page of runs goes on: after the run made at `at` with this id."""

    at: datetime
    run_id: str


def page_of_runs(
    connection: Connection,
    states: Collection[RunState] = (),
    name_prefix: str = "",
    after: Place | None = None,
    limit: int = 50,
) -> Sequence[AnyRow]:
    """Newest first."""
    r = runs.c
    query = select(runs).order_by(r.created_at.desc(), r.id.desc()).limit(limit)
    if states:
        query = query.where(r.state.in_(list(states)))
    if name_prefix:
        query = query.where(r.name.startswith(name_prefix, autoescape=True))
    if after is not None:
        older = and_(r.created_at == after.at, r.id < after.run_id)
        query = query.where(or_(r.created_at < after.at, older))
    return connection.execute(query).all()


def job_of(connection: Connection, run_id: str, revision: int) -> JobSpec:
    query = select(revisions.c.spec_version, revisions.c.spec).where(
        revisions.c.run_id == run_id, revisions.c.number == revision
    )
    return job_spec(*connection.execute(query).one())


def attempts_of(connection: Connection, run_id: str) -> Sequence[AnyRow]:
    query = select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.number)
    return connection.execute(query).all()


def last_attempt(connection: Connection, run_id: str) -> AnyRow | None:
    query = select(attempts).where(attempts.c.run_id == run_id)
    return connection.execute(query.order_by(attempts.c.number.desc()).limit(1)).first()


def trainers_of(connection: Connection, run_id: str, attempt: int) -> Sequence[AnyRow]:
    t = trainers.c
    query = select(trainers).where(t.run_id == run_id, t.attempt == attempt)
    return connection.execute(query.order_by(t.rank)).all()


def groups_of(connection: Connection, run_id: str) -> Sequence[AnyRow]:
    g = host_groups.c
    query = select(host_groups).where(g.run_id == run_id)
    return connection.execute(query.order_by(g.generation)).all()


def hosts_of(connection: Connection, run_id: str) -> Sequence[AnyRow]:
    groups = select(host_groups.c.name).where(host_groups.c.run_id == run_id)
    h = hosts.c  # a row's own `index` is the method of tuples
    query = select(
        h.group, h.index.label("number"), h.address, h.last_seen_at, h.running_attempt
    ).where(h.group.in_(groups))
    return connection.execute(query.order_by(h.group, h.index)).all()


def checkpoints_of(connection: Connection, run_id: str) -> Sequence[AnyRow]:
    """Newest first."""
    c = checkpoints.c
    query = select(checkpoints).where(c.run_id == run_id)
    return connection.execute(query.order_by(c.written_at.desc(), c.step.desc())).all()


def incidents_of(connection: Connection, run_id: str) -> Sequence[AnyRow]:
    """Newest first."""
    query = select(incidents).where(incidents.c.run_id == run_id)
    return connection.execute(query.order_by(incidents.c.number.desc())).all()


def revisions_of(connection: Connection, run_id: str) -> Sequence[AnyRow]:
    query = select(revisions).where(revisions.c.run_id == run_id)
    return connection.execute(query.order_by(revisions.c.number)).all()


def events_after(
    connection: Connection, run_id: str, after: int, limit: int, kind: str | None = None
) -> Sequence[AnyRow]:
    e = events.c
    query = select(events).where(e.run_id == run_id, e.id > after).order_by(e.id).limit(limit)
    return connection.execute(query if kind is None else query.where(e.kind == kind)).all()


def log_after(
    connection: Connection, run_id: str, after: int, limit: int, attempt: int | None = None
) -> Sequence[AnyRow]:
    line = log_lines.c
    query = select(log_lines).where(line.run_id == run_id, line.id > after)
    query = query if attempt is None else query.where(line.attempt == attempt)
    return connection.execute(query.order_by(line.id).limit(limit)).all()


def log_tail(
    connection: Connection, run_id: str, limit: int, attempt: int | None = None
) -> Sequence[AnyRow]:
    """The last `limit` lines, oldest first."""
    line = log_lines.c
    query = select(log_lines).where(line.run_id == run_id)
    query = query if attempt is None else query.where(line.attempt == attempt)
    return connection.execute(query.order_by(line.id.desc()).limit(limit)).all()[::-1]


def first_point(connection: Connection, run_id: str, attempt: int) -> AnyRow | None:
    m = metric_points.c
    query = select(metric_points).where(m.run_id == run_id, m.attempt == attempt)
    return connection.execute(query.order_by(m.step).limit(1)).first()


def last_point(connection: Connection, run_id: str, attempt: int) -> AnyRow | None:
    m = metric_points.c
    query = select(metric_points).where(m.run_id == run_id, m.attempt == attempt)
    return connection.execute(query.order_by(m.step.desc()).limit(1)).first()


def replay_end(connection: Connection, run_id: str, attempt: int, last: int) -> datetime | None:
    """When `attempt` completed its newest step that is not beyond `last`."""
    m = metric_points.c
    mine = and_(m.run_id == run_id, m.attempt == attempt, m.step <= last)
    query = select(m.at).where(mine).order_by(m.step.desc()).limit(1)
    return connection.execute(query).scalar()


def newest_usable_step(connection: Connection, run_id: str, branch: int) -> int:
    """The step that an attempt made now would resume from; 0 is the beginning."""
    c = checkpoints.c
    usable = c.state.in_([CheckpointState.ACCEPTED, CheckpointState.VERIFIED])
    query = select(func.max(c.step)).where(c.run_id == run_id, c.branch == branch, usable)
    return connection.execute(query).scalar() or 0


def micros(instant: datetime) -> int:
    return (instant - EPOCH) // MICROSECOND


def times_of(connection: Connection, run: AnyRow, now: datetime) -> RunTime:
    """What the goodput ledger needs to know about the run."""
    rows = attempts_of(connection, run.id)
    highest, before = told(connection, run.id), 0
    spans: list[AttemptTime] = []
    for row in rows:
        spans.append(_time_of(connection, row, before))
        before = max(before, highest.get(row.number, 0))
    first_group = connection.execute(
        select(func.min(host_groups.c.created_at)).where(host_groups.c.run_id == run.id)
    ).scalar()
    until = run.finished_at or now
    return RunTime(
        submitted_at=micros(run.created_at),
        until=micros(until),
        hosts_asked_at=None if first_group is None else micros(first_group),
        attempts=tuple(spans),
        pauses=tuple(_pauses(connection, run.id, until)),
    )


def _time_of(connection: Connection, row: AnyRow, told_before: int) -> AttemptTime:
    ended = None if row.ended_at is None else micros(row.ended_at)
    first = first_point(connection, row.run_id, row.number)
    if first is None:
        return AttemptTime(made_at=micros(row.created_at), ended_at=ended)
    m, run_id = metric_points.c, row.run_id
    mine = and_(m.run_id == run_id, m.attempt == row.number)
    again = and_(mine, m.step <= told_before)
    last = last_point(connection, run_id, row.number) or first
    number, total = connection.execute(select(func.count(), func.sum(m.seconds)).where(mine)).one()
    replayed = connection.execute(select(func.sum(m.seconds)).where(again)).scalar() or 0.0
    c, e = checkpoints.c, evals.c
    saves = and_(c.run_id == run_id, c.attempt == row.number)
    tests = and_(e.run_id == run_id, e.attempt == row.number)
    stalls = connection.execute(select(c.step, c.stall_seconds).where(saves)).all()
    looks = connection.execute(select(e.step, e.seconds).where(tests)).all()
    return AttemptTime(
        made_at=micros(row.created_at),
        first_dispatch_at=micros(first.at) - _whole(first.seconds),
        last_step_at=micros(last.at),
        ended_at=ended,
        steps=number,
        new_steps=_whole(total - replayed),
        replayed_steps=_whole(replayed),
        stalls=_whole(sum(seconds for _, seconds in stalls)),
        evals=_whole(sum(seconds for _, seconds in looks)),
        after_last_step=_whole(
            sum(seconds for step, seconds in (*stalls, *looks) if step >= last.step)
        ),
    )


def _whole(seconds: float) -> int:
    return max(0, round(seconds * 1_000_000))


def _pauses(connection: Connection, run_id: str, until: datetime) -> list[Span]:
    """Stretches in which only a person's wish could make the run go on: paused or failed."""
    spans: list[Span] = []
    began: datetime | None = None
    for row in events_after(connection, run_id, 0, 10_000, RUN_MOVED):
        if began is not None:
            spans.append(Span(micros(began), micros(max(row.at, began))))
        began = row.at if json.loads(row.body)["to"] in RESTING else None
    if began is not None and began < until:
        spans.append(Span(micros(began), micros(until)))
    return spans
