"""Reads for people: rows of runs and of what belongs to them.

Owns the queries behind the API's pages; what they mean is told by `api.views`. Must not import the
API, and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from sqlalchemy import ColumnElement, Connection, Table, and_, case, collate, func, or_, select

from orchestrator.ledger.goodput import AttemptTime, Category, GroupTime, RunTime, Span
from orchestrator.ledger.history import Segment
from orchestrator.ledger.rollups import Summary
from orchestrator.state import RETRY_CLASS, RetryClass, RunState, Verdict
from orchestrator.store import reads
from orchestrator.store.bulk import micros
from orchestrator.store.conditions import USABLE
from orchestrator.store.history import told
from orchestrator.store.rows import AnyRow
from orchestrator.store.summaries import totals
from orchestrator.store.tables import (
    attempts,
    branches,
    checkpoints,
    evals,
    events,
    host_groups,
    hosts,
    incidents,
    metric_points,
    revisions,
    runs,
    trainers,
)

RUN_MOVED = "run_moved"  # the timeline's word for a move of the run's state
# What the time from the last step to the end of an attempt was, by its verdict; lost by any other.
TAILS: Mapping[str, Category] = {Verdict.HUNG.value: Category.HANG} | {
    verdict.value: Category.STOPPING
    for verdict, kind in RETRY_CLASS.items()
    if kind in (RetryClass.OBEY, RetryClass.FINISH) or verdict is Verdict.OVER_LIMIT
}
START: Mapping[str | None, Category] = {
    "init": Category.INIT,
    "restore": Category.RESTORE,
    "compile": Category.COMPILE,
}
UNTIL_A_WISH = frozenset({RunState.PAUSED, RunState.FAILED})


class Order(StrEnum):
    """Of a list of runs."""

    NEWEST = "newest"
    OLDEST = "oldest"
    NAME = "name"


@dataclass(frozen=True)
class Asked:
    """Which runs are wanted; `since` is included and `until` is not."""

    states: Collection[RunState] = ()
    owner: str | None = None
    name_prefix: str = ""
    since: datetime | None = None
    until: datetime | None = None
    order: Order = Order.NEWEST


ALL_RUNS = Asked()


@dataclass(frozen=True)
class Place:
    """Where a page of runs goes on: after the run made at `first`, or named so, with this id."""

    first: datetime | str
    run_id: str


@dataclass(frozen=True)
class Saved:
    """Where a page of checkpoints goes on, newest first."""

    written_at: datetime
    step: int
    id: str


def page_of_runs(
    connection: Connection, asked: Asked, after: Place | None = None, limit: int = 50
) -> Sequence[AnyRow]:
    r = runs.c
    query = select(runs).where(*_asked(asked)).limit(limit)
    match asked.order:
        case Order.NEWEST:
            query = query.order_by(r.created_at.desc(), r.id.desc())
        case Order.OLDEST:
            query = query.order_by(r.created_at, r.id)
        case Order.NAME:
            query = query.order_by(_by_bytes(connection, r.name), r.id)
    if after is not None:
        query = query.where(_beyond(connection, asked.order, after))
    return connection.execute(query).all()


def _asked(asked: Asked) -> Iterator[ColumnElement[bool]]:
    r = runs.c
    if asked.states:
        yield r.state.in_(list(asked.states))
    if asked.owner is not None:
        yield r.owner == asked.owner
    if asked.name_prefix:
        yield r.name.startswith(asked.name_prefix, autoescape=True)
    if asked.since is not None:
        yield r.created_at >= asked.since
    if asked.until is not None:
        yield r.created_at < asked.until


def _beyond(connection: Connection, order: Order, after: Place) -> ColumnElement[bool]:
    r = runs.c
    match order:
        case Order.NEWEST:
            same = and_(r.created_at == after.first, r.id < after.run_id)
            return or_(r.created_at < after.first, same)
        case Order.OLDEST:
            same = and_(r.created_at == after.first, r.id > after.run_id)
            return or_(r.created_at > after.first, same)
        case Order.NAME:  # names are unique
            return _by_bytes(connection, r.name) > after.first


def _by_bytes(connection: Connection, column: ColumnElement[str]) -> ColumnElement[str]:
    """Text in one order everywhere: PostgreSQL would else take the locale of its database."""
    return collate(column, "C") if connection.dialect.name == "postgresql" else column


def attempts_of(
    connection: Connection, run_id: str, after: int = 0, limit: int | None = None
) -> Sequence[AnyRow]:
    """In order, those beyond the number `after`."""
    a = attempts.c
    query = select(attempts).where(a.run_id == run_id, a.number > after).order_by(a.number)
    return connection.execute(query.limit(limit)).all()


def attempt_end(connection: Connection, run_id: str, number: int) -> datetime | None:
    a = attempts.c
    query = select(a.ended_at).where(a.run_id == run_id, a.number == number)
    return connection.execute(query).scalar()


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


def checkpoints_of(
    connection: Connection, run_id: str, after: Saved | None = None, limit: int | None = None
) -> Sequence[AnyRow]:
    """Newest first."""
    c = checkpoints.c
    query = select(checkpoints).where(c.run_id == run_id)
    if after is not None:
        older = or_(c.step < after.step, and_(c.step == after.step, c.id < after.id))
        same = and_(c.written_at == after.written_at, older)
        query = query.where(or_(c.written_at < after.written_at, same))
    newest = (c.written_at.desc(), c.step.desc(), c.id.desc())
    return connection.execute(query.order_by(*newest).limit(limit)).all()


def incidents_of(
    connection: Connection, run_id: str, before: int | None = None, limit: int | None = None
) -> Sequence[AnyRow]:
    """Newest first."""
    i = incidents.c
    query = select(incidents).where(i.run_id == run_id)
    query = query if before is None else query.where(i.number < before)
    return connection.execute(query.order_by(i.number.desc()).limit(limit)).all()


def revisions_of(
    connection: Connection, run_id: str, after: int = 0, limit: int | None = None
) -> Sequence[AnyRow]:
    v = revisions.c
    query = select(revisions).where(v.run_id == run_id, v.number > after).order_by(v.number)
    return connection.execute(query.limit(limit)).all()


def events_after(
    connection: Connection, run_id: str, after: int, limit: int, kinds: Collection[str] = ()
) -> Sequence[AnyRow]:
    e = events.c
    query = select(events).where(e.run_id == run_id, e.id > after).order_by(e.id).limit(limit)
    return connection.execute(query.where(e.kind.in_(list(kinds))) if kinds else query).all()


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
    parts = (
        c.branch == number if limit is None else and_(c.branch == number, c.step <= limit)
        for number, limit in reads.lineage(connection, run_id, branch)
    )
    query = select(func.max(c.step)).where(c.run_id == run_id, or_(*parts), USABLE)
    return connection.execute(query).scalar() or 0


def branch_start(connection: Connection, run_id: str, branch: int) -> int:
    """The step of the checkpoint that the branch was opened at; 0 is the run's beginning."""
    b = branches.c
    query = select(b.from_step).where(b.run_id == run_id, b.number == branch)
    return connection.execute(query).scalar() or 0


def times_of(connection: Connection, run: AnyRow, now: datetime) -> RunTime:
    """What the goodput ledger needs to know about the run."""
    rows = attempts_of(connection, run.id)
    highest, before = told(connection, run.id), 0
    again: list[Segment] = []
    for row in rows:
        again.append(Segment(row.number, 0, before))
        before = max(before, highest.get(row.number, 0))
    whole = totals(connection, run.id, [Segment(row.number, 0, None) for row in rows])
    replayed = totals(connection, run.id, again)
    spans = [
        _time_of(connection, row, whole.get(row.number), replayed.get(row.number)) for row in rows
    ]
    g = host_groups.c
    groups = connection.execute(
        select(g.created_at, g.ready_at, g.released_at, g.price_per_hour)
        .where(g.run_id == run.id)
        .order_by(g.generation)
    )
    until = run.finished_at or now
    return RunTime(
        submitted_at=micros(run.created_at),
        until=micros(until),
        groups=tuple(
            GroupTime(micros(asked), _instant(ready), _instant(gone), price)
            for asked, ready, gone, price in groups
        ),
        attempts=tuple(spans),
        pauses=tuple(_pauses(connection, run.id, until)),
    )


def _time_of(
    connection: Connection, row: AnyRow, whole: Summary | None, replayed: Summary | None
) -> AttemptTime:
    """`whole` sums up what the attempt told, `replayed` what of it was told before."""
    first = first_point(connection, row.run_id, row.number)
    begun = AttemptTime(
        made_at=micros(row.created_at),
        ended_at=_instant(row.ended_at),
        init=_whole(row.init_seconds or 0.0),
        restore=_whole(row.restore_seconds or 0.0),
        compile=_whole(row.compile_seconds or 0.0),
        tail=TAILS.get(row.verdict or "", Category.LOST),
    )
    if first is None or whole is None:
        phase, phase_at = _phase(connection, row)
        return replace(begun, phase=phase, phase_at=_instant(phase_at))
    again = replayed.seconds if replayed else 0.0
    waited_again = replayed.data_wait if replayed else 0.0
    stalls, late_stalls = _waits(connection, checkpoints, "stall_seconds", row, whole.last)
    looks, late_looks = _waits(connection, evals, "seconds", row, whole.last)
    return replace(
        begun,
        first_dispatch_at=micros(first.at) - _whole(first.seconds),
        last_step_at=whole.last_at,
        steps=whole.count,
        new_steps=_whole(whole.seconds - again),
        replayed_steps=_whole(again),
        data_waits=_whole(whole.data_wait - waited_again),
        stalls=_whole(stalls),
        evals=_whole(looks),
        after_last_step=_whole(late_stalls + late_looks),
    )


def _phase(connection: Connection, row: AnyRow) -> tuple[Category | None, datetime | None]:
    """Where process 0 of an attempt that never took a step is, or was in the end."""
    t = trainers.c
    mine = and_(t.run_id == row.run_id, t.attempt == row.number, t.rank == 0)
    told = connection.execute(select(t.phase, t.phase_at).where(mine)).first()
    return (None, None) if told is None else (START.get(told.phase), told.phase_at)


def _instant(at: datetime | None) -> int | None:
    return None if at is None else micros(at)


def _waits(
    connection: Connection, table: Table, seconds: str, row: AnyRow, last: int
) -> tuple[float, float]:
    """The attempt's sum of this column in seconds, and the part of it at step `last` or later."""
    c = table.c
    late = func.sum(case((c.step >= last, c[seconds]), else_=0.0))
    query = select(func.sum(c[seconds]), late).where(
        c.run_id == row.run_id, c.attempt == row.number
    )
    total, after = connection.execute(query).one()
    return total or 0.0, after or 0.0


def _whole(seconds: float) -> int:
    return max(0, round(seconds * 1_000_000))


def _pauses(connection: Connection, run_id: str, until: datetime) -> list[Span]:
    """Stretches in which only a person's wish could make the run go on: paused or failed."""
    spans: list[Span] = []
    began: datetime | None = None
    for row in events_after(connection, run_id, 0, 10_000, (RUN_MOVED,)):
        if began is not None:
            spans.append(Span(micros(began), micros(max(row.at, began))))
        began = row.at if json.loads(row.body)["to"] in UNTIL_A_WISH else None
    if began is not None and began < until:
        spans.append(Span(micros(began), micros(until)))
    return spans
