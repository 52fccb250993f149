"""The last seven days in numbers: how much of the time trained, and what stops took.

Pure arithmetic over lives. A run's ledger tells its whole time; its life says how much of that lies
in the window, so that what a productive stretch lost to saves and evaluations is spread over it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from orchestrator.dashboard.life import Kind, Life, Window

WEEK = timedelta(days=7)
NO_WORK = frozenset({Kind.QUEUED, Kind.HELD, Kind.NEEDS_PERSON})


@dataclass(frozen=True)
class Week:
    """`run_seconds` are those in which runs worked or wanted to: without waiting for hosts or for
    a person. `goodput` is the productive share of them, None where there are none."""

    run_seconds: float
    goodput: float | None

    @property
    def lost_seconds(self) -> float:
        return self.run_seconds * (1 - (self.goodput or 0.0))


def week(lives: Iterable[tuple[Life, float | None]], window: Window) -> Week:
    """Of all lives, each with the goodput of its run."""
    worked = won = 0.0
    for life, goodput in lives:
        whole = Window(life.start, life.end)
        here, ever = _seconds(life, window), _seconds(life, whole)
        productive_ever = _seconds(life, whole, {Kind.PRODUCTIVE})
        worked += here
        if goodput is not None and productive_ever > 0:
            share = min(1.0, goodput * ever / productive_ever)
            won += share * _seconds(life, window, {Kind.PRODUCTIVE})
    return Week(worked, min(1.0, won / worked) if worked > 0 else None)


def _seconds(life: Life, window: Window, kinds: Iterable[Kind] | None = None) -> float:
    """Of these kinds, or of all that are work."""
    wanted = set(Kind) - NO_WORK if kinds is None else set(kinds)
    found = 0.0
    for segment in life.segments:
        if segment.kind in wanted:
            inside = min(segment.end, window.end) - max(segment.start, window.start)
            found += max(0.0, inside.total_seconds())
    return found
