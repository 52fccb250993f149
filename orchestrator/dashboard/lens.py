"""One stop under a magnifying glass: its phases from the stop to the end of the replay."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from orchestrator.dashboard import words
from orchestrator.dashboard.life import Kind, Life, Mark, Window

BEFORE_AND_AFTER = 0.18  # of the stop's length, shown on both sides of it
SHORTEST_LENS_SECONDS = 1.0
SHORTEST_PHASE_SECONDS = 0.01


@dataclass(frozen=True)
class Phase:
    kind: Kind
    length: str
    what: str


@dataclass(frozen=True)
class Lens:
    number: int
    mark: Mark
    window: Window
    phases: tuple[Phase, ...]


def lenses(life: Life, most: int = 12) -> list[Lens]:
    """The newest `most` stops, oldest first."""
    numbered = list(enumerate(life.marks, start=1))[-most:]
    return [_lens(number, mark, life) for number, mark in numbered]


def _lens(number: int, mark: Mark, life: Life) -> Lens:
    end, phases = mark.at, list[Phase]()
    for segment in life.segments:
        if segment.start < mark.at:
            continue
        if segment.kind is Kind.PRODUCTIVE:
            break
        end = segment.end
        if segment.seconds >= SHORTEST_PHASE_SECONDS:
            phases.append(Phase(segment.kind, words.duration(segment.seconds), segment.what))
    length = max((end - mark.at).total_seconds(), SHORTEST_LENS_SECONDS)
    pad = timedelta(seconds=length * BEFORE_AND_AFTER)
    window = Window(max(life.start, mark.at - pad), min(life.end, end + pad))
    return Lens(number, mark, window, tuple(phases))
