"""Reads of the canonical history and of replays.

Owns how metric rows become the one history of a run: `ledger.history` says which attempt tells a
step, this module fetches it. Rows are append-only under (run, attempt, step), so every read is a
range of the primary key. Must not import the API.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, case, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from orchestrator.ledger.history import Launch, Origin, Segment, canonical, within
from orchestrator.ledger.replay import DETERMINISTIC
from orchestrator.store.summaries import columns_of
from orchestrator.store.tables import attempts, branches, evals, metric_points, trainers

SEGMENTS_A_QUERY = 100
Point = Row[*tuple[Any, ...]]


@dataclass(frozen=True)
class Replay:
    """Steps of one attempt that an earlier one had told.

    `steps` counts them; `compared` those of them that must be the same to the last bit, because
    both attempts trained the same branch under an equal numerics key. `identical` is None while
    there are none to compare. `apart` is how far the losses lie from those that another numerics
    key gave, the largest as a share; None where there are none.
    """

    steps: int = 0
    compared: int = 0
    first_difference: int | None = None
    apart: float | None = None

    @property
    def identical(self) -> bool | None:
        return self.first_difference is None if self.compared else None


@dataclass(frozen=True)
class Column:
    """Steps `first..last` in one column of a chart; NULL (not a number) values are left out.

    `loss_last` and `learning_rate` are those of step `last`; `step_seconds` and `data_wait` are
    seconds a step, on the whole.
    """

    first: int
    last: int
    attempt: int
    loss_min: float | None
    loss_max: float | None
    loss_mean: float | None
    loss_last: float | None
    grad_norm_max: float | None
    grad_norm_mean: float | None
    learning_rate: float
    tokens_per_second: float | None
    step_seconds: float | None
    data_wait: float | None


def launches(connection: Connection, run_id: str) -> list[Launch]:
    a = attempts.c
    query = select(a.number, a.branch, a.resumed_from_step).where(a.run_id == run_id)
    return [Launch(*row) for row in connection.execute(query.order_by(a.number))]


def segments(connection: Connection, run_id: str, branch: int) -> tuple[Segment, ...]:
    """The canonical history of `branch`, in order of steps."""
    b = branches.c
    query = select(b.number, b.parent, b.from_step).where(b.run_id == run_id)
    origins = {number: Origin(parent, step) for number, parent, step in connection.execute(query)}
    return canonical(launches(connection, run_id), branch, origins)


def points(
    connection: Connection,
    run_id: str,
    parts: Sequence[Segment],
    after: int = 0,
    through: int | None = None,
    limit: int = 1000,
) -> list[Point]:
    """The first `limit` steps with `after < step <= through`, each once, in order."""
    found: list[Point] = []
    for part in within(parts, after, through):
        if len(found) >= limit:
            break
        query = select(metric_points).where(_inside(run_id, part)).order_by(metric_points.c.step)
        found.extend(connection.execute(query.limit(limit - len(found))))
    return found


def newest(
    connection: Connection, run_id: str, parts: Sequence[Segment], limit: int = 1
) -> list[Point]:
    """The last `limit` steps of the canonical history, newest first."""
    found: list[Point] = []
    for part in reversed(parts):
        if len(found) >= limit:
            break
        query = select(metric_points).where(_inside(run_id, part))
        query = query.order_by(metric_points.c.step.desc()).limit(limit - len(found))
        found.extend(connection.execute(query))
    return found


def columns(
    connection: Connection, run_id: str, parts: Sequence[Segment], width: int, longest: int
) -> list[Column]:
    """The steps of `parts` in columns of `width` steps; a column never spans two attempts.

    `longest` is that of the summaries which are read in place of points.
    """
    return [
        Column(
            first=one.first,
            last=one.last,
            attempt=one.attempt,
            loss_min=one.loss_min,
            loss_max=one.loss_max,
            loss_mean=one.loss_sum / one.losses if one.losses else None,
            loss_last=one.loss_last,
            grad_norm_max=one.grad_norm_max,
            grad_norm_mean=one.grad_norm_sum / one.grad_norms if one.grad_norms else None,
            learning_rate=one.learning_rate_last,
            tokens_per_second=one.tokens / one.seconds if one.seconds else None,
            step_seconds=one.seconds / one.count if one.count else None,
            data_wait=one.data_wait / one.count if one.count else None,
        )
        for one in columns_of(connection, run_id, parts, width, longest)
    ]


def evaluations(
    connection: Connection,
    run_id: str,
    parts: Sequence[Segment],
    after: int = 0,
    through: int | None = None,
    width: int = 1,
) -> list[tuple[int, int, float | None]]:
    """(step, attempt, loss) of the evaluations `after < step <= through`, in order.

    `parts` are whole segments of the canonical history. One may begin with an evaluation of the
    very step that its attempt resumed at: the attempt before had given it up in order to leave.
    Of those within the same `width` steps of an attempt, the last one.
    """
    e = evals.c
    asked = [e.run_id == run_id, e.step > after]
    if through is not None:
        asked.append(e.step <= through)
    found: list[tuple[int, int, float | None]] = []
    for some in _some(parts):
        ranges = (
            _range(e.attempt, e.step, Segment(part.attempt, part.after - 1, part.through))
            for part in some
        )
        last = (
            select(e.attempt, func.max(e.step).label("step"))
            .where(*asked, or_(*ranges))
            .group_by(e.attempt, (e.step - 1) // width)
            .subquery()
        )
        both = and_(e.run_id == run_id, e.attempt == last.c.attempt, e.step == last.c.step)
        query = select(e.step, e.attempt, e.loss).select_from(last).join(evals, both)
        found.extend((step, attempt, loss) for step, attempt, loss in connection.execute(query))
    return sorted(found, key=lambda one: one[:2])


def told(connection: Connection, run_id: str) -> dict[int, int]:
    """The highest step that each attempt told of; attempts that told none are left out."""
    a, m = attempts.c, metric_points.c
    highest = (
        select(func.max(m.step))
        .where(m.run_id == run_id, m.attempt == a.number)
        .correlate(attempts)
        .scalar_subquery()
    )
    query = select(a.number, highest).where(a.run_id == run_id)
    return {number: step for number, step in connection.execute(query) if step is not None}


def replays(connection: Connection, run_id: str) -> dict[int, Replay]:
    """For each attempt, how the steps that it trained again compare with their last telling before.

    Loss, gradient norm and batch hash must be the same exactly; NaN (kept as NULL) equals NaN.
    Another branch has other batches, and another numerics key other last bits: there `apart` says
    how far off the losses are.
    """
    highest, keys = told(connection, run_id), _numerics_keys(connection, run_id)
    found: dict[int, Replay] = {}
    earlier: list[tuple[Segment, tuple[int, str | None]]] = []
    for launch in launches(connection, run_id):
        reached = highest.get(launch.number)
        if reached is None:
            found[launch.number] = Replay()
            continue
        mine = Segment(launch.number, launch.resumed_from, reached)
        like = (launch.branch, keys.get(launch.number))
        again = [(one, kind) for one, kind in earlier if one.cut(mine.after, mine.through)]
        alike = [one.attempt for one, kind in again if kind == like and not _loose(like[1])]
        apart = [one.attempt for one, kind in again if kind[0] == like[0]]
        steps, _, _ = _compare(connection, run_id, mine, [one.attempt for one, _ in again])
        _, compared, first = _compare(connection, run_id, mine, alike)
        other = _apart(connection, run_id, mine, [one for one in apart if one not in alike])
        found[launch.number] = Replay(steps, compared, first, other)
        earlier.append((mine, like))
    return found


def _loose(key: str | None) -> bool:
    """Whether trainers with this key need not tell the same bits twice."""
    return key is not None and not key.endswith(DETERMINISTIC)


def _apart(
    connection: Connection, run_id: str, mine: Segment, again: Sequence[int]
) -> float | None:
    """The largest share by which a loss of `mine` differs from those of the attempts `again`."""
    if not again:
        return None
    now, before = (metric_points.alias(name) for name in ("now", "before"))
    same_step = and_(
        before.c.run_id == run_id, before.c.step == now.c.step, before.c.attempt.in_(again)
    )
    share = func.abs(now.c.loss - before.c.loss) / func.nullif(func.abs(before.c.loss), 0.0)
    query = select(func.max(share)).select_from(now).join(before, same_step)
    query = query.where(now.c.run_id == run_id, _range(now.c.attempt, now.c.step, mine))
    return connection.scalar(query)


def _numerics_keys(connection: Connection, run_id: str) -> dict[int, str | None]:
    """What the last bits of each attempt's losses depend on, as its first trainer told."""
    t = trainers.c
    query = select(t.attempt, t.numerics_key).where(t.run_id == run_id, t.rank == 0)
    return {row.attempt: row.numerics_key for row in connection.execute(query)}


def _compare(
    connection: Connection, run_id: str, mine: Segment, again: Sequence[int]
) -> tuple[int, int, int | None]:
    """How many steps of `mine` one of the attempts `again` had told, of how many more than their
    number was told, and the first that differs.

    Of several tellings of a step the last one counts.
    """
    if not again:
        return 0, 0, None
    now, before, any_before = (metric_points.alias(name) for name in ("now", "before", "any"))
    same_step = and_(any_before.c.run_id == run_id, any_before.c.step == now.c.step)
    last = select(func.max(any_before.c.attempt)).where(same_step, any_before.c.attempt.in_(again))
    values = ("loss", "grad_norm", "batch_hash")
    differs = or_(*(now.c[name].is_distinct_from(before.c[name]) for name in values))
    says = or_(now.c.loss.is_not(None), now.c.batch_hash != "")  # a program need not
    earlier = and_(
        before.c.run_id == run_id,
        before.c.step == now.c.step,
        before.c.attempt == last.correlate(now).scalar_subquery(),
    )
    query = (
        select(func.count(), func.count(case((says, 1))), func.min(case((differs, now.c.step))))
        .select_from(now)
        .join(before, earlier)
        .where(now.c.run_id == run_id, _range(now.c.attempt, now.c.step, mine))
    )
    count, told, first = connection.execute(query).one()
    return count, told, first


def _inside(run_id: str, part: Segment) -> ColumnElement[bool]:
    m = metric_points.c
    return and_(m.run_id == run_id, _range(m.attempt, m.step, part))


def _range(
    attempt: ColumnElement[int], step: ColumnElement[int], part: Segment
) -> ColumnElement[bool]:
    within_part = and_(attempt == part.attempt, step > part.after)
    return within_part if part.through is None else and_(within_part, step <= part.through)


def _some(parts: Sequence[Segment]) -> Iterator[Sequence[Segment]]:
    for start in range(0, len(parts), SEGMENTS_A_QUERY):
        yield parts[start : start + SEGMENTS_A_QUERY]
