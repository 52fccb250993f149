"""Which telling of a step counts: the canonical history of a run.

An attempt that resumes at a step unsays whatever earlier attempts of its branch told beyond it; a
branch takes over from its parent beyond the step that it was opened at. So each step is told once.
Pure; must not import the store, the API or a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """What of an attempt decides which steps it tells: those after `resumed_from`."""

    number: int
    branch: int
    resumed_from: int


@dataclass(frozen=True)
class Origin:
    """Where a branch left its parent; the first branch has none."""

    parent: int | None
    from_step: int


@dataclass(frozen=True)
class Segment:
    """The steps `after < step <= through` count as `attempt` told them; None is no upper bound."""

    attempt: int
    after: int
    through: int | None

    def cut(self, after: int, through: int | None) -> Segment | None:
        """The part within `after < step <= through`, or None where nothing is left."""
        low = max(self.after, after)
        high = _lower(self.through, through)
        return Segment(self.attempt, low, high) if high is None or high > low else None


def canonical(
    launches: Sequence[Launch], branch: int, origins: Mapping[int, Origin] | None = None
) -> tuple[Segment, ...]:
    """The segments of `branch` and of the branches that it came from, in order of steps.

    They never overlap. `launches` may come in any order; a branch without an origin is a root.
    """
    found: list[Segment] = []
    here: int | None = branch
    bound: int | None = None
    seen: set[int] = set()
    while here is not None and here not in seen:
        seen.add(here)
        for launch in sorted(launches, key=lambda one: one.number, reverse=True):
            if launch.branch != here:
                continue
            if bound is None or launch.resumed_from < bound:
                found.append(Segment(launch.number, launch.resumed_from, bound))
            bound = _lower(launch.resumed_from, bound)
        origin = (origins or {}).get(here, Origin(None, 0))
        bound = _lower(origin.from_step, bound)
        here = origin.parent
    return tuple(reversed(found))


def within(segments: Sequence[Segment], after: int, through: int | None) -> tuple[Segment, ...]:
    """The parts of `segments` with `after < step <= through`."""
    cuts = (segment.cut(after, through) for segment in segments)
    return tuple(cut for cut in cuts if cut is not None)


def _lower(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
