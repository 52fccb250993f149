"""Invariant 9: batch = f(data plan, step), and every sample once an epoch."""

from __future__ import annotations

import numpy as np
import pytest

from worker.data.batches import TrainingBatches
from worker.data.mixture import Mixture
from worker.data.samples import InMemory
from worker.protocol import DataPlan, Skip

SAMPLES = np.arange(20, dtype=np.uint16).reshape(10, 2)
SEQUENCES = 3


def drawn(steps: range, plan: DataPlan | None = None) -> list[int]:
    """The first token of each sample of these steps: it names the sample."""
    batches = TrainingBatches(Mixture.of(InMemory(SAMPLES)), plan or DataPlan(seed=1), SEQUENCES)
    return [int(row[0]) for step in steps for row in batches.at(step).rows]


def test_every_sample_comes_once_an_epoch_and_the_next_epoch_fills_the_last_batch() -> None:
    seen = drawn(range(10))
    epochs = [seen[start : start + len(SAMPLES)] for start in range(0, len(seen), len(SAMPLES))]
    assert all(sorted(epoch) == sorted(range(0, 20, 2)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_a_batch_depends_on_nothing_but_the_plan_and_the_step() -> None:
    whole = drawn(range(8))
    assert drawn(range(5, 8)) == whole[5 * SEQUENCES :]
    assert drawn(range(8), DataPlan(seed=2)) != whole


@pytest.mark.parametrize("first", [0, 2])
def test_skipped_batches_are_left_out_and_the_rest_keeps_its_order(first: int) -> None:
    plan = DataPlan(seed=1, skips=(Skip(first=first, last=first + 1, reason="spike"),))
    whole = drawn(range(8))
    left = whole[: first * SEQUENCES] + whole[(first + 2) * SEQUENCES :]
    assert drawn(range(6), plan) == left
