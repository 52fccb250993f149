"""Invariant 8: a resumed run is the uninterrupted run, bit for bit, and the comparison can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from worker.data.batches import Batch, Batches
from worker.step import TrainState

SAVED = 4  # resumed from here
VARIANTS = {
    "bf16-scan": {"dtype": "bfloat16", "scan_layers": True},
    "fp32-unrolled": {"dtype": "float32", "scan_layers": False, "tied": False},
}


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run and where it was kept."""

    rig: Rig
    link: Recorder
    storage: Path


@pytest.fixture(scope="module", params=VARIANTS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp(request.param)
    job = tiny_job(write_text(root / "text"), model=VARIANTS[request.param], hosts={"devices": 2})
    rig, link = Rig.build(job), Recorder()
    rig.run(attempt(job, root), link)
    return Whole(rig, link, root)


def differences(
    whole: Whole,
    tamper: Callable[[TrainState], TrainState] = lambda state: state,
    batches: Callable[[Batches], Batches] = lambda batches: batches,
) -> list[str]:
    """Resumes from the middle and names what differs from the uninterrupted run."""
    spec = attempt(whole.rig.job, whole.storage, 2, resume=whole.link.point(SAVED))
    link = Recorder()
    whole.rig.run(spec, link, tamper=tamper, batches=batches(whole.rig.batches(spec)))
    first, again = whole.link.of("step"), link.of("step")
    assert [event.step for event in again] == list(range(SAVED + 1, whole.rig.job.steps + 1))
    found = []
    for before, after in zip(first[SAVED:], again, strict=True):
        for name in ("loss", "grad_norm", "learning_rate", "batch_hash"):
            if getattr(before, name) != getattr(after, name):
                found.append(f"{name} at step {before.step}")
    ends = [one.of("checkpoint_written")[-1].state_digest for one in (whole.link, link)]
    if ends[0] != ends[1]:
        found.append("the final state")
    return found


def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(whole: Whole) -> None:
    assert differences(whole) == []


def test_dropping_the_optimizer_state_is_noticed(whole: Whole) -> None:
    def drop(state: TrainState) -> TrainState:
        return replace(state, optimizer=jax.tree.map(jnp.zeros_like, state.optimizer))

    found = differences(whole, tamper=drop)
    assert f"loss at step {SAVED + 2}" in found
    assert "the final state" in found


def test_dropping_the_random_key_is_noticed(whole: Whole) -> None:
    def drop(state: TrainState) -> TrainState:
        return replace(state, rng=jax.random.key_data(jax.random.key(whole.rig.job.seed)))

    found = differences(whole, tamper=drop)
    assert f"loss at step {SAVED + 1}" in found
    assert "the final state" in found


def test_dropping_the_data_position_is_noticed(whole: Whole) -> None:
    @dataclass(frozen=True)
    class FromTheStart:
        batches: Batches

        def at(self, step: int) -> Batch:
            return self.batches.at(step - SAVED)

    found = differences(whole, batches=FromTheStart)
    assert f"batch_hash at step {SAVED + 1}" in found
    assert f"loss at step {SAVED + 1}" in found


def test_losses_are_of_a_model_that_learns(whole: Whole) -> None:
    losses = whole.link.losses()
    assert losses[whole.rig.job.steps] < losses[1]
