"""Reads long metric histories with the help of the summaries of their spans.

Raw points stand in for what is not summed up yet, so that readers see the same either way. What is
summed up is written by `rollups.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, ScalarSelect, Select, and_, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from orchestrator.ledger.history import Segment
from orchestrator.ledger.rollups import POINTS, SPANS, Summary, Tile, join, tiles
from orchestrator.store.bulk import micros
from orchestrator.store.tables import attempts, metric_points, metric_rollups

TILES_A_QUERY = 100
EVERYTHING = (1 << 31) - 1  # a column that holds all steps there can be
VALUES = tuple(
    column.name
    for column in metric_rollups.c
    if column.name not in ("run_id", "attempt", "span", "first_step", "last_step")
)


def newest_span(span: int) -> ScalarSelect[Any]:
    a, r = attempts.c, metric_rollups.c
    return (
        select(func.max(r.first_step) + (span - 1))
        .where(r.run_id == a.run_id, r.attempt == a.number, r.span == span)
        .correlate(attempts)
        .scalar_subquery()
    )


def summed_through(
    connection: Connection, run_id: str, numbers: Sequence[int] | None = None
) -> dict[int, dict[int, int]]:
    """For each attempt and each length, the last step of the newest span that is summed up."""
    a = attempts.c
    query = select(a.number, *map(newest_span, SPANS)).where(a.run_id == run_id)
    if numbers is not None:
        query = query.where(a.number.in_(numbers))
    return {
        number: {span: step or 0 for span, step in zip(SPANS, steps, strict=True)}
        for number, *steps in connection.execute(query)
    }


def columns_of(
    connection: Connection, run_id: str, parts: Sequence[Segment], width: int, longest: int
) -> list[Summary]:
    """The steps of `parts` in columns of `width` steps, each of one attempt, in order of steps.

    Summaries of at most `longest` steps are read, of which `width` must be a multiple.
    """
    cells: defaultdict[tuple[int, int], list[Summary]] = defaultdict(list)
    for one in _read(connection, run_id, parts, longest, width):
        cells[one.attempt, (one.first - 1) // width].append(one)
    return sorted((join(found) for found in cells.values()), key=lambda one: one.first)


def totals(connection: Connection, run_id: str, parts: Sequence[Segment]) -> dict[int, Summary]:
    """All the steps of `parts` by attempt; attempts that told none of them are left out."""
    whole = columns_of(connection, run_id, parts, EVERYTHING, SPANS[-1])
    return {one.attempt: one for one in whole}


def _read(
    connection: Connection, run_id: str, parts: Sequence[Segment], longest: int, width: int
) -> Iterator[Summary]:
    summed = summed_through(connection, run_id)
    by_span: defaultdict[int, list[tuple[int, Tile]]] = defaultdict(list)
    for part in parts:
        for tile in tiles(part.after, part.through, summed.get(part.attempt, {}), longest):
            by_span[tile.span].append((part.attempt, tile))
    for span, found in by_span.items():
        for start in range(0, len(found), TILES_A_QUERY):
            some = found[start : start + TILES_A_QUERY]
            if span == POINTS:
                yield from _read_points(connection, run_id, some, width)
            else:
                yield from read_spans(connection, run_id, some, span)


def _read_points(
    connection: Connection, run_id: str, some: Iterable[tuple[int, Tile]], width: int
) -> list[Summary]:
    m = metric_points.c
    where = or_(*(_within(m.attempt, m.step, attempt, tile) for attempt, tile in some))
    query = from_points(run_id, where, width).subquery().c
    values = (query[name] for name in VALUES)
    return _summaries(connection, select(query.attempt, query.first_step, query.last_step, *values))


def read_spans(
    connection: Connection, run_id: str, some: Iterable[tuple[int, Tile]], span: int
) -> list[Summary]:
    r = metric_rollups.c
    where = or_(*(_within(r.attempt, r.first_step, attempt, tile) for attempt, tile in some))
    mine = and_(r.run_id == run_id, r.span == span)
    return _summaries(connection, spans_query().where(mine, where))


def spans_query() -> Select[Any]:
    """The columns that `summary` reads."""
    r = metric_rollups.c
    return select(r.attempt, r.first_step, r.last_step, *(r[name] for name in VALUES))


def _within(
    attempt: ColumnElement[int], step: ColumnElement[int], number: int, tile: Tile
) -> ColumnElement[bool]:
    newer = and_(attempt == number, step > tile.after)
    return newer if tile.through is None else and_(newer, step <= tile.through)


def _summaries(connection: Connection, query: Select[Any]) -> list[Summary]:
    return [summary(row) for row in connection.execute(query)]


def summary(row: Row[*tuple[Any, ...]]) -> Summary:
    """From (attempt, first step, last step, `VALUES` …)."""
    attempt, first, last, *values = row
    told = dict(zip(VALUES, values, strict=True))
    told["last_at"] = micros(told["last_at"])
    return Summary(attempt=attempt, first=first, last=last, **told)


def from_points(run_id: str, where: ColumnElement[bool], width: int) -> Select[Any]:
    """One row for each attempt and each `width` steps: `bucket`, both ends and `VALUES`."""
    m = metric_points.c
    bucket = ((m.step - 1) // width).label("bucket")
    sums = (
        select(
            m.attempt,
            bucket,
            func.min(m.step).label("first_step"),
            func.max(m.step).label("last_step"),
            func.count().label("count"),
            func.count(m.loss).label("losses"),
            func.min(m.loss).label("loss_min"),
            func.max(m.loss).label("loss_max"),
            func.coalesce(func.sum(m.loss), 0.0).label("loss_sum"),
            func.count(m.grad_norm).label("grad_norms"),
            func.min(m.grad_norm).label("grad_norm_min"),
            func.max(m.grad_norm).label("grad_norm_max"),
            func.coalesce(func.sum(m.grad_norm), 0.0).label("grad_norm_sum"),
            func.sum(m.tokens).label("tokens"),
            func.sum(m.seconds).label("seconds"),
            func.max(m.seconds).label("seconds_max"),
            func.sum(m.data_wait).label("data_wait"),
        )
        .where(m.run_id == run_id, where)
        .group_by(m.attempt, bucket)
        .subquery()
    )
    last = metric_points.alias("last")
    newest = {
        "last_at": last.c.at,
        "loss_last": last.c.loss,
        "grad_norm_last": last.c.grad_norm,
        "learning_rate_last": last.c.learning_rate,
    }
    values = [(newest[name] if name in newest else sums.c[name]).label(name) for name in VALUES]
    return select(sums.c.attempt, sums.c.bucket, sums.c.first_step, sums.c.last_step, *values).join(
        last,
        and_(
            last.c.run_id == run_id,
            last.c.attempt == sums.c.attempt,
            last.c.step == sums.c.last_step,
        ),
    )
