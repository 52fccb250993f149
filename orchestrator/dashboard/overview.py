"""What the overview shows: every run as one row, all lives on one time axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.api.fleet_schemas import FleetPage
from orchestrator.api.schemas import IncidentView, RunSummary
from orchestrator.dashboard import house, life, story
from orchestrator.dashboard.reader import Reader
from orchestrator.dashboard.spark import Spark, spark
from orchestrator.dashboard.week import WEEK, Week, week
from orchestrator.state import TERMINAL_RUNS, RunState

SPARK_POINTS = 60
LEAST_STOP = 0.6  # percent of the strip: about two pixels
MARKS_APART = 3.5
MOST_HAPPENINGS = 12
MOST_FINISHED = 12


@dataclass(frozen=True)
class Strip:
    boxes: list[life.Box]
    marks: list[tuple[float, life.Mark]]
    ticks: list[life.Tick]


@dataclass(frozen=True)
class Held:
    """The hosts that a run holds now; what they cost an hour where their prices are known."""

    hosts: int = 0
    per_hour: float | None = None


@dataclass(frozen=True)
class Row:
    run: RunSummary
    life: life.Life
    incidents: tuple[IncidentView, ...]
    spark: Spark | None
    strip: Strip
    held: Held

    @property
    def needs_reason(self) -> IncidentView | None:
        """The incident that a person is needed for, where there is one."""
        return next((i for i in self.incidents if i.needs_person and i.closed_at is None), None)


@dataclass(frozen=True)
class Figures:
    """`spent` and `spent_before` are of this week and of the one before, in `currency`."""

    training: int
    hosts: int
    tokens_per_second: float
    week: Week
    stops: int
    recovered: int
    spent: float | None
    spent_before: float | None
    currency: str


@dataclass(frozen=True)
class Overview:
    headline: story.Answer
    figures: Figures
    needing: list[Row]
    active: list[Row]
    finished: list[Row]
    finished_left_out: int
    happenings: list[tuple[RunSummary, IncidentView]]
    window_name: str
    windows: tuple[str, ...]
    ticks: list[life.Tick]
    priced: bool
    house: house.House


def overview(reader: Reader, chosen_window: str | None) -> Overview:
    runs, now = reader.runs(), reader.now()
    active = [run for run in runs if run.state not in TERMINAL_RUNS or run.needs_person]
    over = [run for run in runs if run not in active]
    finished, shown = over[:MOST_FINISHED], [*active, *over[:MOST_FINISHED]]
    stories = {run.id: reader.incidents(run.id) for run in shown}
    lives = {run.id: life.live(run, reader.attempts(run.id), stories[run.id], now) for run in shown}
    name, window = life.shared_window([lives[run.id] for run in active], now, chosen_window)
    fleet, found = reader.hosts(), reader.orphans()
    held = _held(fleet)

    def row(run: RunSummary, window: life.Window) -> Row:
        losses = reader.losses(run.id, SPARK_POINTS)
        strip = draw(lives[run.id], window)
        holds = held.get(run.id, Held())
        return Row(run, lives[run.id], stories[run.id], spark(losses), strip, holds)

    rows = [row(run, window) for run in sorted(active, key=_urgency)]
    own = [row(run, life.Window(lives[run.id].start, lives[run.id].end)) for run in finished]
    happenings = _happenings(shown, stories, now)
    return Overview(
        headline=story.headline(active),
        figures=_figures(reader, shown, lives, happenings, fleet.currency),
        needing=[row for row in rows if row.run.needs_person],
        active=rows,
        finished=own,
        finished_left_out=len(over) - len(finished),
        happenings=happenings[:MOST_HAPPENINGS],
        window_name=name,
        windows=tuple(life.WINDOWS),
        ticks=life.ticks(window),
        priced=any(run.cost for run in runs) or any(one.per_hour for one in held.values()),
        house=house.house(fleet, found),
    )


def _held(fleet: FleetPage) -> dict[str, Held]:
    held: dict[str, Held] = {}
    for group in fleet.items:
        before = held.get(group.run, Held())
        prices = [one for one in (before.per_hour, group.price_per_hour) if one is not None]
        hosts = before.hosts + len(group.hosts)
        held[group.run] = Held(hosts, sum(prices) if prices else None)
    return held


def draw(one: life.Life, window: life.Window, least: float = LEAST_STOP) -> Strip:
    return Strip(
        life.boxes(one, window, least),
        life.mark_boxes(one, window, MARKS_APART),
        life.ticks(window),
    )


def _urgency(run: RunSummary) -> tuple[bool, bool, float]:
    """Who waits for a person first, then who recovers, then the oldest."""
    recovering = run.state in (RunState.RECOVERING, RunState.STARTING)
    return not run.needs_person, not recovering, run.created_at.timestamp()


def _happenings(
    runs: Sequence[RunSummary], stories: dict[str, tuple[IncidentView, ...]], now: datetime
) -> list[tuple[RunSummary, IncidentView]]:
    """Every stop of the last 24 hours, newest first."""
    since = now - timedelta(hours=24)
    told = [(run, i) for run in runs for i in stories[run.id] if i.opened_at >= since]
    return sorted(told, key=lambda pair: pair[1].opened_at, reverse=True)


def _figures(
    reader: Reader,
    runs: Sequence[RunSummary],
    lives: Mapping[str, life.Life],
    happenings: Sequence[tuple[RunSummary, IncidentView]],
    currency: str,
) -> Figures:
    training = [run for run in runs if run.state is RunState.RUNNING]
    now, since = reader.now(), reader.now() - WEEK
    return Figures(
        training=len(training),
        hosts=sum(run.hosts for run in training),
        tokens_per_second=sum(run.progress.tokens_per_second or 0.0 for run in training),
        week=week(((lives[run.id], run.goodput) for run in runs), life.Window(since, now)),
        stops=len(happenings),
        recovered=sum(
            incident.closed_by_attempt is not None and not incident.asked_person
            for _, incident in happenings
        ),
        spent=reader.spent(since, now),
        spent_before=reader.spent(since - WEEK, since),
        currency=currency,
    )
