"""From rows to what people read: metrics, charts and the goodput ledger.

Owns how a long history becomes a page or a chart. Must not write, nor import FastAPI.
"""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.api.history_schemas import Chart, ChartColumn, EvalPoint, MetricPoint, Metrics
from orchestrator.api.schemas import GoodputPart, GoodputView
from orchestrator.ledger.goodput import Ledger, account, shares
from orchestrator.ledger.history import within
from orchestrator.ledger.rollups import column_width
from orchestrator.service import Service
from orchestrator.store import history
from orchestrator.store import views as rows
from orchestrator.store.wishes import find


def metrics(
    connection: Connection,
    service: Service,
    id_or_name: str,
    from_step: int = 1,
    to_step: int | None = None,
    limit: int = 1000,
) -> Metrics:
    """The canonical history from `from_step` to `to_step`, both included, each step once.

    `next_step` is the `from_step` of the next page, None on the last one. Evaluations are those
    of the page's steps.
    """
    run = find(connection, id_or_name)
    parts = history.segments(connection, run.id, run.branch)
    found = history.points(connection, run.id, parts, from_step - 1, to_step, limit + 1)
    page = found[:limit]
    more = len(found) > limit
    through = page[-1].step if more else to_step
    looked = history.evaluations(connection, run.id, parts, from_step - 1, through)
    return Metrics(
        points=tuple(metric_point(row) for row in page),
        evals=tuple(EvalPoint(step=s, attempt=a, loss=loss) for s, a, loss in looked),
        next_step=found[limit].step if more else None,
    )


def metric_point(row: history.Point) -> MetricPoint:
    return MetricPoint(
        step=row.step,
        attempt=row.attempt,
        at=row.at,
        loss=row.loss,
        grad_norm=row.grad_norm,
        learning_rate=row.learning_rate,
        tokens=row.tokens,
        seconds=row.seconds,
        data_wait=row.data_wait,
        batch_hash=row.batch_hash,
    )


def chart(
    connection: Connection,
    service: Service,
    id_or_name: str,
    points: int = 600,
    from_step: int = 1,
    to_step: int | None = None,
) -> Chart:
    """The canonical history in about `points` columns, each with lowest, highest, mean and last.

    Of a long history, summaries are read in place of points. A column holds the steps of one
    attempt, so there is one more for each attempt that begins inside of a column's width.
    """
    run = find(connection, id_or_name)
    parts = history.segments(connection, run.id, run.branch)
    last = history.newest(connection, run.id, within(parts, from_step - 1, to_step))
    if not last:
        return Chart(width=1, first_step=from_step, last_step=from_step, columns=(), evals=())
    through = last[0].step
    shown = within(parts, from_step - 1, through)
    width, longest = column_width(through - from_step + 1, points)
    looked = history.evaluations(connection, run.id, parts, from_step - 1, through, width)
    return Chart(
        width=width,
        first_step=from_step,
        last_step=through,
        columns=tuple(
            ChartColumn(**vars(column))
            for column in history.columns(connection, run.id, shown, width, longest)
        ),
        evals=tuple(EvalPoint(step=s, attempt=a, loss=loss) for s, a, loss in looked),
    )


def goodput(connection: Connection, service: Service, id_or_name: str) -> GoodputView:
    ledger = goodput_of(connection, service, find(connection, id_or_name))
    return GoodputView(
        wall_seconds=ledger.wall / 1e6,
        goodput=ledger.goodput or 0.0,
        parts=tuple(
            GoodputPart(
                category=category, seconds=amount / 1e6, share=share, cost=ledger.costs[category]
            )
            for category, amount, share in shares(ledger)
        ),
        cost=ledger.cost,
        currency=service.settings.currency,
    )


def goodput_of(connection: Connection, service: Service, run: rows.AnyRow) -> Ledger:
    return account(rows.times_of(connection, run, service.clock.now()))
