"""Long metric histories, summed up: stores points, and writes the summaries of spans.

`ledger.rollups` says what is summed up; `summaries.py` reads. The finest summaries are made from
raw points in one statement, the longer ones from the shorter.

A summary always equals its raw points: it is made while the rows of the attempt's hosts are held,
which every report of theirs holds too, and a point that arrives later is added to it in the
transaction that stores the point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, literal, or_, select

from orchestrator.ledger.rollups import FINEST, SPANS, Summary, Tile, join, start_of
from orchestrator.store.bulk import Cell, insert_rows, micros
from orchestrator.store.summaries import (
    VALUES,
    from_points,
    newest_span,
    read_spans,
    spans_query,
    summary,
    summed_through,
)
from orchestrator.store.tables import EPOCH, attempts, hosts, metric_points, metric_rollups, upsert

POINTS_AT_ONCE = 16_384  # summed up in one transaction: some tens of milliseconds
POINT_COLUMNS = tuple(column.name for column in metric_points.c)


def behind(connection: Connection, since: datetime | None) -> list[tuple[str, int]]:
    """Attempts with something to sum up, without those that ended before `since`."""
    a, m = attempts.c, metric_points.c
    newest = (
        select(func.max(m.step))
        .where(m.run_id == a.run_id, m.attempt == a.number)
        .correlate(attempts)
        .scalar_subquery()
    )
    query = select(a.run_id, a.number).order_by(a.run_id, a.number)
    query = query.where(newest >= func.coalesce(newest_span(FINEST), 0) + FINEST)
    if since is not None:
        query = query.where(or_(a.ended_at.is_(None), a.ended_at > since))
    return [(run_id, number) for run_id, number in connection.execute(query)]


def sum_up(connection: Connection, run_id: str, attempt: int) -> bool:
    """Sums up some of what is complete; True when there may be more. Repeating it does no harm."""
    hold_reports(connection, run_id, attempt)
    summed = summed_through(connection, run_id, [attempt])[attempt]
    more = _sum_points(connection, run_id, attempt, summed[FINEST])
    for shorter, span in pairwise(SPANS):
        _sum_spans(connection, run_id, attempt, shorter, span, summed[span])
    return more


def hold_reports(connection: Connection, run_id: str, attempt: int) -> None:
    """No report of the attempt's hosts is half stored while this transaction lasts."""
    a = attempts.c
    group = select(a.group).where(a.run_id == run_id, a.number == attempt).scalar_subquery()
    held = select(hosts.c.index).where(hosts.c.group == group).order_by(hosts.c.index)
    connection.execute(held.with_for_update()).all()


def _sum_points(connection: Connection, run_id: str, attempt: int, summed: int) -> bool:
    m = metric_points.c
    mine = and_(m.run_id == run_id, m.attempt == attempt)
    first = connection.scalar(select(func.min(m.step)).where(mine, m.step > summed))
    newest = connection.scalar(select(func.max(m.step)).where(mine))
    if first is None or newest is None:
        return False
    begin = start_of(first, FINEST) - 1
    complete = newest // FINEST * FINEST
    end = min(complete, begin + POINTS_AT_ONCE)
    if end <= begin:
        return False
    found = from_points(run_id, and_(m.attempt == attempt, m.step > begin, m.step <= end), FINEST)
    inner = found.subquery()
    rows = select(
        literal(run_id),
        inner.c.attempt,
        literal(FINEST),
        inner.c.bucket * FINEST + 1,
        inner.c.last_step,
        *(inner.c[name] for name in VALUES),
    )
    names = ["run_id", "attempt", "span", "first_step", "last_step", *VALUES]
    statement = upsert(connection, metric_rollups).from_select(names, rows.where(literal(1) == 1))
    connection.execute(statement.on_conflict_do_nothing())
    return end < complete


def _sum_spans(
    connection: Connection, run_id: str, attempt: int, shorter: int, span: int, summed: int
) -> None:
    """Joins the complete ones of `shorter` steps to ones of `span` steps."""
    limit = summed_through(connection, run_id, [attempt])[attempt][shorter] // span * span
    if limit <= summed:
        return
    tile = Tile(shorter, summed, limit)
    spans: defaultdict[int, list[Summary]] = defaultdict(list)
    for one in read_spans(connection, run_id, [(attempt, tile)], shorter):
        spans[start_of(one.first, span)].append(one)
    made = [_row(run_id, span, first, join(parts)) for first, parts in spans.items()]
    if made:
        connection.execute(upsert(connection, metric_rollups).on_conflict_do_nothing(), made)


def _row(run_id: str, span: int, first: int, one: Summary) -> dict[str, object]:
    values: dict[str, object] = {n: getattr(one, n) for n in VALUES if n != "last_at"}
    at = EPOCH + timedelta(microseconds=one.last_at)
    key = {"run_id": run_id, "attempt": one.attempt, "span": span, "first_step": first}
    return {**key, **values, "last_step": one.last, "last_at": at}


def store_points(connection: Connection, points: Sequence[tuple[Cell, ...]]) -> None:
    """Stores points, in the order of `POINT_COLUMNS`; those that were told before are left out."""
    if not points:
        return
    named = {(point[0], point[1]) for point in points}
    summed = _summed_points(connection, named)
    fresh = [point for point in points if int(point[2] or 0) > summed.get(point[:2], 0)]
    insert_rows(connection, metric_points, POINT_COLUMNS, fresh)
    if len(fresh) < len(points):
        for point in points:
            if int(point[2] or 0) <= summed.get(point[:2], 0):
                _add_late(connection, dict(zip(POINT_COLUMNS, point, strict=True)))


def _summed_points(
    connection: Connection, named: Collection[tuple[Cell, ...]]
) -> dict[tuple[Cell, ...], int]:
    """Through which step these (run, attempt) are summed up in the finest spans."""
    wanted = {
        "runs": list({run for run, _ in named}),
        "numbers": list({number for _, number in named}),
    }
    found = connection.execute(_SUMMED_POINTS, wanted)
    return {(run, number): step for run, number, step in found if step is not None}


_SUMMED_POINTS = select(attempts.c.run_id, attempts.c.number, newest_span(FINEST)).where(
    attempts.c.run_id.in_(bindparam("runs", expanding=True)),
    attempts.c.number.in_(bindparam("numbers", expanding=True)),
)


def _add_late(connection: Connection, point: dict[str, Any]) -> None:
    """Stores a point of a span that is summed up already, and adds it there.

    One that was told before changes nothing, nor does one whose span's points are dropped.
    """
    point["at"] = EPOCH + timedelta(microseconds=point["at"])
    run_id, attempt, step = point["run_id"], point["attempt"], point["step"]
    if _dropped(connection, run_id, attempt, start_of(step, FINEST)):
        return
    statement = upsert(connection, metric_points).values(point).on_conflict_do_nothing()
    if connection.execute(statement.returning(metric_points.c.step)).first() is None:
        return
    summed = summed_through(connection, run_id, [attempt])[attempt]
    for span in SPANS:
        if step <= summed[span]:
            _add_to(connection, run_id, span, start_of(step, span), _summary_of(point))


def _dropped(connection: Connection, run_id: str, attempt: int, first: int) -> bool:
    m = metric_points.c
    here = and_(m.run_id == run_id, m.attempt == attempt)
    there = and_(here, m.step >= first, m.step < first + FINEST)
    if connection.execute(select(m.step).where(there).limit(1)).first() is not None:
        return False
    tile = Tile(FINEST, first - 1, first - 1 + FINEST)
    return bool(read_spans(connection, run_id, [(attempt, tile)], FINEST))


def _add_to(connection: Connection, run_id: str, span: int, first: int, late: Summary) -> None:
    r = metric_rollups.c
    there = and_(
        r.run_id == run_id, r.attempt == late.attempt, r.span == span, r.first_step == first
    )
    row = connection.execute(spans_query().where(there).with_for_update()).first()
    whole = late if row is None else join([summary(row), late])
    values = _row(run_id, span, first, whole)
    key = ["run_id", "attempt", "span", "first_step"]
    statement = upsert(connection, metric_rollups).values(values)
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=values))


def _summary_of(point: dict[str, Any]) -> Summary:
    loss, norm = point["loss"], point["grad_norm"]
    return Summary(
        attempt=point["attempt"],
        first=point["step"],
        last=point["step"],
        count=1,
        last_at=micros(point["at"]),
        losses=int(loss is not None),
        loss_min=loss,
        loss_max=loss,
        loss_sum=loss or 0.0,
        loss_last=loss,
        grad_norms=int(norm is not None),
        grad_norm_min=norm,
        grad_norm_max=norm,
        grad_norm_sum=norm or 0.0,
        grad_norm_last=norm,
        learning_rate_last=point["learning_rate"],
        tokens=point["tokens"],
        seconds=point["seconds"],
        seconds_max=point["seconds"],
        data_wait=point["data_wait"],
    )
