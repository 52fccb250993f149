"""The numbers behind the step charts, as columns that a browser can draw at once.

Up to `MOST_COLUMNS` steps are sent as they are, and only the new ones again. Beyond, each column
holds neighbouring steps with lowest, highest and mean, and a look is always at the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.api.history_schemas import Chart
from orchestrator.api.schemas import AttemptView, RunDetail
from orchestrator.dashboard.reader import Reader
from orchestrator.state import Verdict

MOST_COLUMNS = 1500
SIGNIFICANT_DIGITS = 6
EVERYTHING = "whole"  # the part of a layout's key that forbids appending

MetricName = Literal["loss", "grad_norm", "learning_rate", "throughput", "step_time", "data_wait"]


class Series(BaseModel):
    """One value a column; `low` and `high` are empty where a column is a single step."""

    model_config = ConfigDict(frozen=True)

    mean: list[float | None]
    low: list[float | None] = []
    high: list[float | None] = []


class AttemptSpan(BaseModel):
    """Where an attempt stands on the step axis; steps up to `replayed_to` were trained again."""

    model_config = ConfigDict(frozen=True)

    number: int
    resumed_from: int
    last_step: int | None
    replayed_to: int
    identical: bool | None
    verdict: Verdict | None


class Figures(BaseModel):
    """Columns of one `key` can be appended to each other; `step` is the last one of a column."""

    model_config = ConfigDict(frozen=True)

    key: str
    from_step: int
    steps: int
    width: int
    step: list[int]
    series: dict[MetricName, Series]
    evals: list[tuple[int, float]]
    attempts: list[AttemptSpan]


def figures(reader: Reader, run: RunDetail, key: str, after: int) -> Figures:
    """The columns past step `after`, or all of them where `key` is no longer the layout's."""
    attempts = reader.attempts(run.id)
    layout = layout_key(run, attempts)
    from_step = after + 1 if key == layout and EVERYTHING not in layout else 1
    chart = reader.chart(run.id, MOST_COLUMNS, from_step)
    return Figures(
        key=layout,
        from_step=from_step,
        steps=run.progress.steps,
        width=chart.width,
        step=[column.last for column in chart.columns],
        series=_series(chart),
        evals=[(e.step, value) for e in chart.evals if (value := _round(e.loss)) is not None],
        attempts=[_span(attempt) for attempt in attempts],
    )


def layout_key(run: RunDetail, attempts: Sequence[AttemptView]) -> str:
    """A new attempt or branch redraws everything: replayed steps may tell anew."""
    few = run.progress.step <= MOST_COLUMNS
    return f"{run.branch}.{len(attempts)}.{'steps' if few else EVERYTHING}"


def _series(chart: Chart) -> dict[MetricName, Series]:
    columns, wide = chart.columns, chart.width > 1
    return {
        "loss": Series(
            mean=[_round(c.loss_mean) for c in columns],
            low=[_round(c.loss_min) for c in columns] if wide else [],
            high=[_round(c.loss_max) for c in columns] if wide else [],
        ),
        "grad_norm": Series(mean=[_round(c.grad_norm_mean) for c in columns]),
        "learning_rate": Series(mean=[_round(c.learning_rate) for c in columns]),
        "throughput": Series(mean=[_round(c.tokens_per_second) for c in columns]),
        "step_time": Series(mean=[_round(c.step_seconds) for c in columns]),
        "data_wait": Series(mean=[_round(c.data_wait) for c in columns]),
    }


def _round(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _span(attempt: AttemptView) -> AttemptSpan:
    return AttemptSpan(
        number=attempt.number,
        resumed_from=attempt.resumed_from_step,
        last_step=attempt.last_step,
        replayed_to=attempt.resumed_from_step + attempt.replayed_steps,
        identical=attempt.replayed_bit_identical,
        verdict=attempt.verdict,
    )
