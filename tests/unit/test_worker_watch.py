"""The rules that watch the loss: what is a spike, what is noise, and what a resume remembers."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from worker.data.batches import Batch
from worker.ends import Diverged
from worker.manifest import MANIFEST, Manifest
from worker.protocol import SpikeSpec
from worker.watch import LossWatch, Spike, not_finite

RULE = SpikeSpec(window=50, least=20, deviations=10.0, rise=0.5, patience=3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_named(bad: float) -> None:
    assert "loss" in (not_finite(bad, 1.0) or "")
    assert "gradient" in (not_finite(1.0, bad) or "")
    assert not_finite(1.0, 1.0) is None


def calm(watch: LossWatch, steps: int, first: int = 1) -> int:
    """Feeds losses of about 3 with a little noise; the next step."""
    chance = random.Random(first)
    for step in range(first, first + steps):
        assert watch.judge(step, 3.0 + chance.uniform(-0.05, 0.05)) is None
    return first + steps


def test_a_loss_that_rises_and_stays_is_a_spike_from_its_first_step() -> None:
    watch = LossWatch(RULE)
    step = calm(watch, 30)
    assert watch.judge(step, 9.0) is None
    assert watch.suspects
    assert watch.judge(step + 1, 8.0) is None
    spike = watch.judge(step + 2, 7.0)
    assert isinstance(spike, Spike)
    assert (spike.step, spike.loss) == (step, 9.0)
    assert spike.usual == pytest.approx(3.0, abs=0.05)
    assert spike.bound == pytest.approx(spike.usual + 0.5, abs=0.3)
    assert spike.bound >= spike.usual + 0.5


def test_a_loss_that_comes_back_is_no_spike_and_moves_no_bound() -> None:
    watch = LossWatch(RULE)
    step = calm(watch, 30)
    for _ in range(20):
        watch.judge(step, 50.0)
        watch.judge(step + 1, 50.0)
        assert watch.judge(step + 2, 3.0) is None
        assert not watch.suspects
        step += 3
    assert max(watch.seen.losses) < 3.5


def test_neither_the_first_losses_nor_small_rises_are_judged() -> None:
    early = LossWatch(RULE)
    assert [early.judge(step, 100.0 / step) for step in range(1, 20)] == [None] * 19
    flat = LossWatch(RULE)
    for step in range(1, 31):
        flat.judge(step, 3.0)
    assert [flat.judge(31 + n, 3.5) for n in range(5)] == [None] * 5  # no spread, yet under `rise`
    assert flat.judge(40, 3.6) is None
    assert flat.suspects


def test_no_rule_judges_nothing() -> None:
    watch = LossWatch(None)
    assert [watch.judge(step, 10.0**step) for step in range(1, 100)] == [None] * 99
    assert watch.seen.losses == ()


@given(st.lists(st.floats(0.0, 20.0), max_size=120), st.integers(0, 120))
def test_who_goes_on_with_what_was_seen_judges_alike(losses: list[float], cut: int) -> None:
    whole, first = LossWatch(RULE), LossWatch(RULE)
    expected = [whole.judge(step, loss) for step, loss in enumerate(losses)]
    told = [first.judge(step, loss) for step, loss in enumerate(losses[:cut])]
    second = LossWatch(RULE, first.seen)
    told += [second.judge(step, loss) for step, loss in enumerate(losses[cut:], cut)]
    assert told == expected


def test_a_rule_that_could_never_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="least 60 is more than window 50"):
        SpikeSpec(window=50, least=60)


# ---- in the loop -------------------------------------------------------------------------------


class Poisoned:
    """Batches of which those from `first` on are noise that no model can know."""

    def __init__(self, rig: Rig, spec: object, first: int, last: int) -> None:
        self._batches = rig.batches(spec)  # type: ignore[arg-type]
        self._bad = range(first, last)

    def at(self, step: int) -> Batch:
        batch = self._batches.at(step)
        if step not in self._bad:
            return batch
        key = jax.random.key(step)
        noise = jax.random.randint(key, batch.rows.shape, 128, 256, jnp.int32)
        return replace(batch, rows=jax.device_get(noise).astype(batch.rows.dtype))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    rule = {"window": 20, "least": 8, "deviations": 2.0, "rise": 0.8, "patience": 3}
    return Rig.build(
        tiny_job(
            write_text(tmp_path_factory.mktemp("text")),
            steps=40,
            optimizer={"learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_steps": 2},
            checkpoint={"every_steps": 4},
            eval={"every_steps": 100},
            policy={"spike": rule},
            hosts={"devices": 2},
        ),
        quickly=True,
    )


def test_a_spike_ends_the_attempt_before_anything_is_saved_on_it(rig: Rig, tmp_path: Path) -> None:
    link, spec = Recorder(), attempt(rig.job, tmp_path)
    with pytest.raises(Diverged, match="at step 27 and stayed over its bound"):
        rig.run(spec, link, batches=Poisoned(rig, spec, 26, 99))
    [told] = link.of("loss_spike")
    assert told.step == 27
    assert told.usual < told.bound < told.loss
    assert [event.step for event in link.of("checkpoint_written")] == [4, 8, 12, 16, 20, 24]


def test_a_save_that_is_due_waits_until_the_loss_is_back(rig: Rig, tmp_path: Path) -> None:
    link, spec = Recorder(), attempt(rig.job, tmp_path)
    rig.run(spec, link, batches=Poisoned(rig, spec, 26, 28))
    saved = [event.step for event in link.of("checkpoint_written")]
    assert saved == [4, 8, 12, 16, 20, 24, 29, 32, 36, 40]


def test_what_was_seen_travels_with_the_checkpoint(rig: Rig, tmp_path: Path) -> None:
    link, spec = Recorder(), attempt(rig.job, tmp_path)
    rig.run(spec, link)
    text = (Path(link.point(24).uri) / MANIFEST).read_text()
    losses = Manifest.model_validate_json(text).loop.losses
    assert list(losses) == [link.losses()[step] for step in range(5, 25)]
    again = attempt(rig.job, tmp_path, 2, resume=link.point(24))
    assert rig.restored(again).seen.losses == losses
