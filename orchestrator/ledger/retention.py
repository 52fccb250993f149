"""Which raw points of an old history must stay although summaries tell the rest.

Summaries hold whole spans. Where a span is cut in two (an attempt resumed there, a branch began
there, a checkpoint could be returned to) its points stay, and so do all steps that were trained
more than once: whether both tellings are equal must remain to be seen. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.ledger.rollups import FINEST, start_of


@dataclass(frozen=True)
class Kept:
    """The steps `first` to `last`, both included."""

    first: int
    last: int


@dataclass(frozen=True)
class Telling:
    """An attempt that told the steps `first` to `last`; attempts come in order."""

    resumed_from: int
    first: int
    last: int


def kept(tellings: Sequence[Telling], cuts: Iterable[int]) -> tuple[Kept, ...]:
    """What stays of every attempt of a run; at each step of `cuts` a history may end or begin."""
    found = [Kept(step, step + 1) for step in cuts]
    before = 0
    for one in tellings:
        found += [Kept(one.first, one.first), Kept(one.last, one.last)]
        found.append(Kept(one.resumed_from, one.resumed_from + 1))
        again = min(before, one.last)
        if again > one.resumed_from:
            found.append(Kept(one.resumed_from + 1, again))
        before = max(before, one.last)
    return tuple(found)


def droppable(through: int, stays: Sequence[Kept]) -> tuple[tuple[int, int], ...]:
    """Pairs (after, through) of whole finest spans up to `through` that no kept step lies in."""
    found: list[tuple[int, int]] = []
    free = 0  # everything up to here is decided
    end = through // FINEST * FINEST
    for one in sorted(stays, key=lambda kept: kept.first):
        begin = start_of(max(one.first, 1), FINEST) - 1
        if min(begin, end) > free:
            found.append((free, min(begin, end)))
        free = max(free, start_of(max(one.last, 1), FINEST) - 1 + FINEST)
    if end > free:
        found.append((free, end))
    return tuple(found)
