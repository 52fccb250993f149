"""Spans of steps: how a long metric history is summed up, and which summaries cover a stretch.

A span of length n holds the steps k·n+1 … (k+1)·n of one attempt. It is summed up once a later
step is told, so what is not summed up yet is at most the last one of each length. Each length is a
multiple of the one before. Pure; must not import the store, the API or a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SPANS = (64, 512, 4096, 32_768, 262_144)
FINEST = SPANS[0]
POINTS = 1  # the length of "span" under which single points are meant


@dataclass(frozen=True)
class Summary:
    """The points of some steps of one attempt, `first` to `last`.

    `losses` and `grad_norms` count the finite ones, of which sums and extremes are; what ends in
    `_last` is of step `last`, None where that is not finite. Times are in seconds, `last_at` in
    microseconds since the epoch.
    """

    attempt: int
    first: int
    last: int
    count: int
    last_at: int
    losses: int
    loss_min: float | None
    loss_max: float | None
    loss_sum: float
    loss_last: float | None
    grad_norms: int
    grad_norm_min: float | None
    grad_norm_max: float | None
    grad_norm_sum: float
    grad_norm_last: float | None
    learning_rate_last: float
    tokens: int
    seconds: float
    seconds_max: float
    data_wait: float


def join(parts: Iterable[Summary]) -> Summary:
    """The summary of what `parts`, which share no step, sum up; there must be one at least."""
    found = sorted(parts, key=lambda one: one.last)
    newest = found[-1]
    return Summary(
        attempt=newest.attempt,
        first=min(one.first for one in found),
        last=newest.last,
        count=sum(one.count for one in found),
        last_at=newest.last_at,
        losses=sum(one.losses for one in found),
        loss_min=_least([one.loss_min for one in found]),
        loss_max=_most([one.loss_max for one in found]),
        loss_sum=sum(one.loss_sum for one in found),
        loss_last=newest.loss_last,
        grad_norms=sum(one.grad_norms for one in found),
        grad_norm_min=_least([one.grad_norm_min for one in found]),
        grad_norm_max=_most([one.grad_norm_max for one in found]),
        grad_norm_sum=sum(one.grad_norm_sum for one in found),
        grad_norm_last=newest.grad_norm_last,
        learning_rate_last=newest.learning_rate_last,
        tokens=sum(one.tokens for one in found),
        seconds=sum(one.seconds for one in found),
        seconds_max=max(one.seconds_max for one in found),
        data_wait=sum(one.data_wait for one in found),
    )


def _least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def start_of(step: int, span: int) -> int:
    """The first step of the span that `step` lies in."""
    return (step - 1) // span * span + 1


@dataclass(frozen=True)
class Tile:
    """The steps `after < step <= through`, to be read from summaries of `span` steps each.

    Both ends lie between two spans, except where `span` is `POINTS`; `through` is None for points
    up to the newest.
    """

    span: int
    after: int
    through: int | None


def tiles(
    after: int, through: int | None, summed: Mapping[int, int], longest: int
) -> tuple[Tile, ...]:
    """Covers `after < step <= through` with as few summaries of at most `longest` steps as can be.

    `summed` says for each length through which step the attempt is summed up. In order of steps.
    """
    found = _cover(after, through, [span for span in SPANS if span <= longest], summed)
    return tuple(tile for tile in found if tile.through is None or tile.through > tile.after)


def _cover(
    after: int, through: int | None, spans: Sequence[int], summed: Mapping[int, int]
) -> list[Tile]:
    if not spans:
        return [Tile(POINTS, after, through)]
    *shorter, span = spans
    limit = summed.get(span, 0)
    end = min(limit, limit if through is None else through) // span * span
    begin = -(-after // span) * span
    if begin >= end:
        return _cover(after, through, shorter, summed)
    return [
        *_cover(after, begin, shorter, summed),
        Tile(span, begin, end),
        *_cover(end, through, shorter, summed),
    ]


def column_width(steps: int, columns: int) -> tuple[int, int]:
    """(width, span): columns of `width` steps, and the longest summaries that fit into them.

    There are about `columns` of them; a width above the finest span is a multiple of `span`.
    """
    width = max(1, -(-steps // columns))
    span = max((one for one in SPANS if one <= width), default=POINTS)
    return -(-width // span) * span, span
