"""Invariant 9 for mixtures: exact shares at every step, each sample once an epoch of its source."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.data.batches import TrainingBatches
from worker.data.mixture import Mixture, Schedule
from worker.data.samples import InMemory
from worker.protocol import DataPlan, Skip
from worker.protocol import Mixture as MixtureSpec

SHARES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def mixture(shares: list[int], sizes: list[int]) -> Mixture:
    """Each sample tells its part and its number there."""
    parts = [
        InMemory(np.stack((np.full(size, part), np.arange(size)), axis=1).astype(np.uint16))
        for part, size in enumerate(sizes)
    ]
    return Mixture(tuple(parts), Schedule(shares))


def drawn(batches: TrainingBatches, steps: range) -> list[tuple[int, int]]:
    return [(int(row[0]), int(row[1])) for step in steps for row in batches.at(step).rows]


def spec(*weights: float) -> MixtureSpec:
    parts = [{"weight": weight, "source": {"kind": "python-source"}} for weight in weights]
    return MixtureSpec.model_validate({"parts": parts})


@settings(max_examples=40, deadline=None)
@given(SHARES)
def test_each_source_has_its_share_within_one_sample_at_every_count(shares: list[int]) -> None:
    schedule, total = Schedule(shares), sum(shares)
    counts: Counter[int] = Counter()
    for place in range(2 * total):
        part, number = schedule.at(place)
        assert number == counts[part]
        counts[part] += 1
        for which, share in enumerate(shares):
            assert abs(counts[which] - Fraction((place + 1) * share, total)) < 1


@settings(max_examples=6, deadline=None)
@given(SHARES, st.data())
def test_each_sample_comes_once_in_each_epoch_of_its_source(
    shares: list[int], data: st.DataObject
) -> None:
    # grain takes milliseconds for each place of a very small order.
    sizes = data.draw(st.lists(st.integers(30, 50), min_size=len(shares), max_size=len(shares)))
    batches = TrainingBatches(mixture(shares, sizes), DataPlan(seed=3), sequences=5)
    seen: dict[int, list[int]] = {part: [] for part in range(len(shares))}
    for part, number in drawn(batches, range(30)):
        seen[part].append(number)
    for part, size in enumerate(sizes):
        for start in range(0, len(seen[part]) - size + 1, size):
            assert sorted(seen[part][start : start + size]) == list(range(size))


@settings(max_examples=10, deadline=None)
@given(SHARES, st.integers(0, 30), st.integers(0, 2**31 - 1))
def test_a_run_resumed_at_any_step_sees_the_same_batches(
    shares: list[int], step: int, seed: int
) -> None:
    sizes = [70 + part for part in range(len(shares))]
    whole = TrainingBatches(mixture(shares, sizes), DataPlan(seed=seed), sequences=3)
    before = [whole.at(n).fingerprint for n in range(step + 3)]
    again = TrainingBatches(mixture(shares, sizes), DataPlan(seed=seed), sequences=3)
    assert [again.at(n).fingerprint for n in range(step, step + 3)] == before[step:]


def test_skipped_batches_are_left_out_of_a_mixture_too() -> None:
    skips = (Skip(first=1, last=2, reason="spike"),)
    plain = TrainingBatches(mixture([7, 3], [30, 30]), DataPlan(seed=1), 5)
    skipping = TrainingBatches(mixture([7, 3], [30, 30]), DataPlan(seed=1, skips=skips), 5)
    assert drawn(skipping, range(4)) == drawn(plain, range(1)) + drawn(plain, range(3, 6))


def test_parts_of_one_size_have_orders_of_their_own() -> None:
    seen = drawn(TrainingBatches(mixture([1, 1], [50, 50]), DataPlan(seed=1), 10), range(10))
    orders = [[number for which, number in seen if which == part] for part in (0, 1)]
    assert orders[0] != orders[1]


def test_held_out_samples_come_in_order_and_end_with_the_shortest_part() -> None:
    rows = mixture([1, 1], [2, 9]).in_order(8)
    assert rows is not None
    assert rows.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert mixture([1, 1], [0, 9]).in_order(8) is None


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((70, 30), (7, 3)),
        ((0.7, 0.3), (7, 3)),
        ((40, 35, 25), (8, 7, 5)),
        ((1, 0, 0.5), (2, 0, 1)),
        ((1e-06, 3e-06), (1, 3)),
    ],
)
def test_weights_become_the_smallest_whole_numbers(
    weights: tuple[float, ...], shares: tuple[int, ...]
) -> None:
    assert spec(*weights).shares == shares


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((0, 0), "sum to nothing"),
        ((-1, 2), "greater than or equal to 0"),
        ((float("nan"), 1), "finite"),
        ((0.1234567, 0.8765433), "fewer digits"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(*weights)
