"""What the REST API answers of a run's history: events, metrics, charts, log lines."""

from __future__ import annotations

from pydantic import AwareDatetime

from orchestrator.api.schemas import View


class EventView(View):
    id: int
    attempt: int | None
    rank: int | None
    kind: str
    at: AwareDatetime
    body: dict[str, object]


class EventPage(View):
    items: tuple[EventView, ...]
    next_cursor: str | None = None


class MetricPoint(View):
    """One step of the canonical history: each step once, as the last telling that counts."""

    step: int
    attempt: int
    at: AwareDatetime
    loss: float | None
    grad_norm: float | None
    learning_rate: float
    tokens: int
    seconds: float
    data_wait: float
    batch_hash: str


class EvalPoint(View):
    step: int
    attempt: int
    loss: float | None


class Metrics(View):
    points: tuple[MetricPoint, ...]
    evals: tuple[EvalPoint, ...]
    next_step: int | None = None


class ChartColumn(View):
    """Steps `first..last` of one attempt; NaN is left out, and a column of NaN alone is None.

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
    step_seconds: float | None = None
    data_wait: float | None = None


class Chart(View):
    """The canonical history in columns of `width` steps (one more where an attempt changes)."""

    width: int
    first_step: int
    last_step: int
    columns: tuple[ChartColumn, ...]
    evals: tuple[EvalPoint, ...]


class LogLine(View):
    id: int
    attempt: int
    rank: int
    at: AwareDatetime
    line: str


class LogPage(View):
    """`next_cursor` goes into `after`, `previous_cursor` into `before`.

    `through` is the last line that was looked at, where a follower goes on: None for no line.
    """

    items: tuple[LogLine, ...]
    next_cursor: int | None = None
    previous_cursor: int | None = None
    through: int | None = None
