"""The canonical history against a model that follows the rule word by word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.history import Launch, Origin, Segment, canonical, within

LAST = 40


def naive(launches: list[Launch], branch: int, origins: dict[int, Origin]) -> dict[int, int]:
    """Which attempt tells each step: asked for every step on its own."""
    told: dict[int, int] = {}
    for step in range(1, LAST + 1):
        here: int | None = branch
        while here is not None:
            owner = _teller([one for one in launches if one.branch == here], step)
            if owner is not None:
                told[step] = owner
                break
            origin = origins.get(here, Origin(None, 0))
            younger = [one.resumed_from for one in launches if one.branch == here]
            if step > min([origin.from_step, *younger]):
                break
            here = origin.parent
    return told


def _teller(mine: list[Launch], step: int) -> int | None:
    for one in sorted(mine, key=lambda launch: launch.number, reverse=True):
        later = [other.resumed_from for other in mine if other.number > one.number]
        if one.resumed_from < step and all(step <= resumed for resumed in later):
            return one.number
    return None


def tell(segments: tuple[Segment, ...]) -> dict[int, int]:
    told: dict[int, int] = {}
    for segment in segments:
        high = LAST if segment.through is None else min(segment.through, LAST)
        for step in range(segment.after + 1, high + 1):
            assert step not in told, "each step once"
            told[step] = segment.attempt
    return told


RESUMES = st.lists(st.integers(0, LAST), min_size=0, max_size=8)


@given(RESUMES)
def test_one_branch(resumes: list[int]) -> None:
    launches = [Launch(n, 1, step) for n, step in enumerate(resumes, 1)]
    assert tell(canonical(launches, 1)) == naive(launches, 1, {})


@given(RESUMES, RESUMES, st.integers(0, LAST))
def test_a_branch_takes_over_where_it_left_its_parent(
    first: list[int], second: list[int], from_step: int
) -> None:
    resumes = [(1, step) for step in first]
    resumes += [(2, max(from_step, step)) for step in second]
    launches = [Launch(n, branch, step) for n, (branch, step) in enumerate(resumes, 1)]
    origins = {2: Origin(1, from_step)}
    segments = canonical(launches, 2, origins)
    assert tell(segments) == naive(launches, 2, origins)
    assert list(segments) == sorted(segments, key=lambda segment: segment.after)


@given(RESUMES, st.integers(0, LAST), st.integers(0, LAST))
def test_a_window_loses_and_adds_nothing(resumes: list[int], low: int, high: int) -> None:
    segments = canonical([Launch(n, 1, step) for n, step in enumerate(resumes, 1)], 1)
    expected = {s: a for s, a in tell(segments).items() if low < s <= high}
    assert tell(within(segments, low, high)) == expected


def test_a_crash_hands_over_at_the_checkpoint() -> None:
    launches = [Launch(1, 1, 0), Launch(2, 1, 10), Launch(3, 1, 10), Launch(4, 1, 25)]
    assert canonical(launches, 1) == (
        Segment(1, 0, 10),
        Segment(3, 10, 25),
        Segment(4, 25, None),
    )


def test_an_older_checkpoint_unsays_what_was_told_beyond_it() -> None:
    launches = [Launch(1, 1, 0), Launch(2, 1, 20), Launch(3, 1, 10)]
    assert canonical(launches, 1) == (Segment(1, 0, 10), Segment(3, 10, None))
