"""A run's life as a strip: which second went where, from what its attempts tell.

Pure geometry over views. Heights and colours belong to the style sheet; positions are shares of a
window, so that one strip can be drawn at any width and several can share one time axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import zip_longest

from orchestrator.api.schemas import AttemptView, IncidentView, RunSummary
from orchestrator.dashboard import looks, words
from orchestrator.state import RunState, Verdict


class Kind(StrEnum):
    """What a stretch of the strip was; the value is the end of its CSS class."""

    PRODUCTIVE = "p"
    REPLAYED = "r"
    RECOVERING = "v"
    QUEUED = "q"
    HELD = "h"  # paused by a person
    NEEDS_PERSON = "z"


GAPS = {
    Kind.RECOVERING: "until the stop was understood",
    Kind.QUEUED: "waited for hosts",
    Kind.HELD: "paused by a person",
    Kind.NEEDS_PERSON: "waited for a person",
}
UNMARKED = frozenset(
    {Verdict.COMPLETED, Verdict.PAUSED, Verdict.CANCELLED, Verdict.SUPERSEDED},
)


@dataclass(frozen=True)
class Segment:
    kind: Kind
    start: datetime
    end: datetime
    what: str

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


@dataclass(frozen=True)
class Mark:
    """The end of an attempt that nobody asked for."""

    at: datetime
    icon: str
    word: str
    attempt: int
    tone: str


@dataclass(frozen=True)
class Life:
    start: datetime
    end: datetime
    segments: tuple[Segment, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Box:
    """A segment or a mark in a window: `x` and `width` in percent of it."""

    kind: str
    x: float
    width: float
    title: str


@dataclass(frozen=True)
class Tick:
    x: float
    text: str


@dataclass(frozen=True)
class Window:
    """A stretch of time that strips are drawn in."""

    start: datetime
    end: datetime

    def share(self, at: datetime) -> float:
        """Where `at` lies, in percent, kept inside the window."""
        length = max((self.end - self.start).total_seconds(), 1e-3)
        return min(100.0, max(0.0, (at - self.start).total_seconds() / length * 100))


def live(
    run: RunSummary,
    attempts: Sequence[AttemptView],
    incidents: Sequence[IncidentView],
    now: datetime,
) -> Life:
    """The whole life of `run`."""
    end = run.finished_at or now
    stops = (incident for incident in incidents if incident.stopped)
    needing = {stop.attempt for stop in stops if stop.asked_person}
    segments: list[Segment] = []
    cursor, gap = run.created_at, Kind.QUEUED
    for attempt, following in zip_longest(attempts, attempts[1:]):
        segments.append(Segment(gap, cursor, attempt.created_at, GAPS[gap]))
        segments += _attempt(attempt, end)
        cursor = attempt.ended_at or end
        gap = _gap_after(attempt, following, needing)
    tail = _tail(run, gap)
    segments.append(Segment(tail, cursor, end, GAPS[tail]))
    return Life(
        run.created_at,
        end,
        tuple(segment for segment in segments if segment.seconds > 0),
        tuple(_marks(attempts, incidents)),
    )


def _attempt(attempt: AttemptView, now: datetime) -> list[Segment]:
    end = attempt.ended_at or now
    first = attempt.first_step_at
    starting = "restored and restarted" if attempt.resumed_from_step else "started"
    replayed = words.plural(attempt.replayed_steps, "step") + " trained again"
    if first is None:
        return [Segment(Kind.RECOVERING, attempt.created_at, end, starting)]
    again = min(max(attempt.replayed_until or first, first), end)
    return [
        Segment(Kind.RECOVERING, attempt.created_at, first, starting),
        Segment(Kind.REPLAYED, first, again, replayed),
        Segment(Kind.PRODUCTIVE, again, end, "trained"),
    ]


def _gap_after(attempt: AttemptView, following: AttemptView | None, needing: set[int]) -> Kind:
    if attempt.verdict is Verdict.PAUSED:
        return Kind.HELD
    if attempt.number in needing:
        return Kind.NEEDS_PERSON
    moved = following is not None and following.group != attempt.group
    return Kind.QUEUED if moved else Kind.RECOVERING


def _tail(run: RunSummary, gap: Kind) -> Kind:
    if run.state is RunState.PAUSED:
        return Kind.NEEDS_PERSON if run.needs_person else Kind.HELD
    if run.state in (RunState.QUEUED, RunState.PROVISIONING):
        return Kind.QUEUED
    return gap


def _marks(attempts: Sequence[AttemptView], incidents: Sequence[IncidentView]) -> list[Mark]:
    open_ones = {incident.attempt: incident for incident in incidents if incident.closed_at is None}
    marks: list[Mark] = []
    for attempt in attempts:
        if attempt.verdict is None or attempt.verdict in UNMARKED or attempt.ended_at is None:
            continue
        look = looks.VERDICTS[attempt.verdict]
        incident = open_ones.get(attempt.number)
        tone = "past" if incident is None else "need" if incident.needs_person else "warn"
        marks.append(Mark(attempt.ended_at, look.icon, look.word, attempt.number, tone))
    return marks


def boxes(life: Life, window: Window, least: float) -> list[Box]:
    """The strip's bars, short stops widened to `least` percent and drawn over longer stretches."""
    placed: list[Box] = []
    for segment in life.segments:
        if segment.end < window.start or segment.start > window.end:
            continue
        x, right = window.share(segment.start), window.share(segment.end)
        floor = 0.0 if segment.kind is Kind.PRODUCTIVE else least
        width = max(right - x, floor)
        placed.append(Box(segment.kind, min(x, 100 - width), width, segment.what))
    return sorted(placed, key=lambda box: box.kind != Kind.PRODUCTIVE)


def mark_boxes(life: Life, window: Window, apart: float) -> list[tuple[float, Mark]]:
    """Marks by position in percent; those that would touch move left."""
    placed: list[tuple[float, Mark]] = []
    edge = 100.0 + apart
    for mark in reversed(life.marks):
        if mark.at < window.start or mark.at > window.end:
            continue
        edge = min(window.share(mark.at), edge - apart)
        if edge < 0:
            break
        placed.append((edge, mark))
    return placed[::-1]


TICK_STEPS = (1, 5, 10, 30, 60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 604_800)
MOST_TICKS = 5


def ticks(window: Window) -> list[Tick]:
    """At most five round times (UTC) with room left for a word at each end."""
    length = (window.end - window.start).total_seconds()
    step = next((s for s in TICK_STEPS if length / s <= MOST_TICKS), TICK_STEPS[-1])
    form = "%H:%M:%S" if step < 60 else "%H:%M" if length < 72_000 else "%a %H:%M"
    first = (int(window.start.timestamp()) // step + 1) * step
    seconds = range(first, int(window.end.timestamp()) + 1, step)[-MOST_TICKS:]
    times = [datetime.fromtimestamp(at, UTC) for at in seconds]
    return [Tick(x, at.strftime(form)) for at in times if 10 < (x := window.share(at)) < 90]


WINDOWS = {
    "5 m": timedelta(minutes=5),
    "15 m": timedelta(minutes=15),
    "1 h": timedelta(hours=1),
    "6 h": timedelta(hours=6),
    "48 h": timedelta(hours=48),
    "7 d": timedelta(days=7),
}


def shared_window(lives: Sequence[Life], now: datetime, chosen: str | None) -> tuple[str, Window]:
    """One axis for all strips: the chosen window, else the shortest that holds every life."""
    oldest = min((life.start for life in lives), default=now)
    fitting = next((name for name, span in WINDOWS.items() if now - span <= oldest), "7 d")
    name = chosen if chosen in WINDOWS else fitting
    return name, Window(now - WINDOWS[name], now)
