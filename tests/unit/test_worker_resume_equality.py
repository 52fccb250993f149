"""Invariant 8: a resumed run is the uninterrupted run, bit for bit, and the comparison can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from orchestrator.data_plan import plan_from
from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from worker.data.batches import Batch, Batches, Text
from worker.ends import CheckpointUnusable, Invalid
from worker.protocol import DataPlan
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


def forked(
    whole: Whole, folder: Path, other_data: bool = False, text: str | None = None, **changes: object
) -> Recorder:
    """What a run of its own does that begins at the middle checkpoint of `whole`."""
    link = Recorder()
    point = whole.link.point(SAVED).model_copy(
        update={"checkpoint_id": f"fork-s{SAVED}", "other_data": other_data}
    )
    given = {"run_id": "r2", "resume": point} | changes
    spec = attempt(whole.rig.job, folder / "r2", 1, **given)
    rig = whole.rig if text is None else replace(whole.rig, text=_called(whole.rig, text))
    rig.run(spec, link)
    return link


def _called(rig: Rig, fingerprint: str) -> Text:
    return replace(rig.text, fingerprint=fingerprint)


def test_a_fork_without_changes_is_the_sources_continuation(whole: Whole, tmp_path: Path) -> None:
    source, fork = whole.link, forked(whole, tmp_path)
    told = ("step", "loss", "grad_norm", "learning_rate", "batch_hash")
    went_on, began = (
        [[getattr(event, name) for name in told] for event in one.of("step")]
        for one in (source, fork)
    )
    assert began == went_on[SAVED:]
    last, own = (one.of("checkpoint_written")[-1] for one in (source, fork))
    assert own.state_digest == last.state_digest
    assert "/r2/a1/" in own.uri
    loop = json.loads((Path(own.uri) / "loop.json").read_text())
    assert (loop["run_id"], loop["attempt"]) == ("r2", 1)


def test_skipped_batches_of_a_new_branch_are_never_trained(whole: Whole, tmp_path: Path) -> None:
    plan = plan_from(DataPlan(seed=whole.rig.job.seed), DataPlan(seed=0), SAVED, 2, "a spike")
    spec = attempt(
        whole.rig.job, tmp_path, 2, branch=2, data_plan=plan, resume=whole.link.point(SAVED)
    )
    link = Recorder()
    whole.rig.run(spec, link)
    first = [event.batch_hash for event in whole.link.of("step")]
    again = [event.batch_hash for event in link.of("step")]
    assert again[:-2] == first[SAVED + 2 :]
    assert not set(again) & set(first[: SAVED + 2])


def test_other_data_is_taken_from_a_fork_that_says_so_alone(whole: Whole, tmp_path: Path) -> None:
    plan = {"data_plan": DataPlan(seed=99)}
    with pytest.raises(CheckpointUnusable, match="another data plan"):
        forked(whole, tmp_path, **plan)
    with pytest.raises(Invalid, match="text is not the one"):
        forked(whole, tmp_path, text="another text")
    steps = forked(whole, tmp_path, other_data=True, text="another text", **plan).of("step")
    assert [event.step for event in steps] == list(range(SAVED + 1, whole.rig.job.steps + 1))
    assert steps[0].batch_hash != whole.link.of("step")[SAVED].batch_hash


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
