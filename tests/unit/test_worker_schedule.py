"""What is due when, the learning rate at each update, and what counts as trouble."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from model.build import initial_params
from tests.fakes.tiny import tiny_job
from worker.optim import matrices, optimizer
from worker.protocol import OptimizerSpec
from worker.schedule import Due, SaveTimer, due
from worker.schedules import learning_rate


def rates(spec: OptimizerSpec, steps: int) -> list[float]:
    rate = learning_rate(spec, steps)
    return [float(rate(count)) for count in range(steps)]


def test_learning_rate_rises_to_its_peak_then_falls_to_its_floor() -> None:
    spec = OptimizerSpec(learning_rate=1.0, min_learning_rate=0.2, warmup_steps=4)
    found = rates(spec, 12)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[7] == pytest.approx(0.6)  # half way down the cosine
    assert found[11] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(found[3:]))


def test_learning_rate_without_warmup_and_with_nothing_else() -> None:
    spec = OptimizerSpec(learning_rate=1.0, min_learning_rate=0.0, warmup_steps=0)
    assert rates(spec, 2) == pytest.approx([0.5, 0.0])
    only = OptimizerSpec(learning_rate=1.0, min_learning_rate=0.0, warmup_steps=3)
    assert rates(only, 3) == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_weight_decay_spares_the_scales_of_norms_alone() -> None:
    job = tiny_job(Path("/text"))
    params = jax.eval_shape(lambda: initial_params(job.model, jax.random.key(0)))
    spared = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, decayed in jax.tree_util.tree_flatten_with_path(matrices(params))[0]
        if not decayed
    }
    assert spared == {"norm.scale", "blocks.attention_norm.scale", "blocks.feed_norm.scale"}


def test_gradients_are_clipped_to_the_global_norm() -> None:
    spec = OptimizerSpec(
        learning_rate=1.0, min_learning_rate=1.0, clip_norm=1.0, weight_decay=0.0, eps=1.0
    )
    update = optimizer(spec, 10)
    params = {"w": jnp.zeros((2, 2))}
    with jax.numpy_dtype_promotion("standard"):
        large, huge = (
            update.update({"w": jnp.full((2, 2), size)}, update.init(params), params)[0]["w"]
            for size in (10.0, 1e6)
        )
    assert jnp.allclose(large, huge)
    assert jnp.allclose(large, -1 / 3)  # clipped to 0.5 each; AdamW's first step is g / (|g| + eps)


def test_last_step_is_saved_and_evaluated_always() -> None:
    job = tiny_job(Path("/text"), steps=10)
    assert [step for step in range(1, 11) if due(job, step).save] == [4, 8, 10]
    assert [step for step in range(1, 11) if due(job, step).evaluate] == [6, 10]
    assert not Due(save=False, evaluate=False).anything


def test_a_save_by_time_is_asked_for_once_and_counts_from_the_last_one() -> None:
    timer = SaveTimer(every=10.0, since=100.0)
    asked = [now for now in range(100, 130) if timer.due(now, last_failed=False)]
    assert asked == [110]
    timer.began(112.0)
    asked = [now for now in range(112, 140) if timer.due(now, last_failed=False)]
    assert asked == [122]


def test_after_a_failure_a_save_by_time_is_tried_again_sooner() -> None:
    timer = SaveTimer(every=40.0, since=0.0)
    assert not timer.due(9.9, last_failed=True)
    assert timer.due(10.0, last_failed=True)


def test_without_an_interval_no_save_is_due() -> None:
    assert not SaveTimer(every=None, since=0.0).due(1e9, last_failed=True)
