"""Schedules and optimizers: equal to their formulas, to PyTorch's, and covering every weight."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.build import initial_params
from model.config import MODEL_PRESETS
from tests.fakes.tiny import tiny_job
from worker.digest import named_arrays
from worker.ends import Invalid
from worker.muon import POLAR_EXPRESS
from worker.optim import evaluated, optimizer
from worker.protocol import AnyOptimizer, GroupSpec, MuonSpec, OptimizerSpec
from worker.schedules import learning_rate, momentum, weight_decay

FLAT: dict[str, Any] = {"clip_norm": None, "schedule": "constant", "warmup_steps": 0}
Weights = dict[str, Any]


def after(spec: AnyOptimizer, params: Weights, gradients: list[Weights], steps: int = 10) -> Any:
    """The weights and the optimizer's state after one update with each of the gradients."""
    update = optimizer(spec, steps)
    with jax.numpy_dtype_promotion("standard"):
        state = update.init(params)
        for gradient in gradients:
            changes, state = update.update(gradient, state, params)
            params = optax.apply_updates(params, changes)  # pyright: ignore[reportAssignmentType]
    return params, state


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[Any]:
    chance = np.random.default_rng(seed)
    return [jnp.asarray(chance.normal(size=shape), jnp.float32) for shape in shapes]


# ---- schedules -----------------------------------------------------------------------------------


def test_the_last_rate_of_slm_is_what_its_schedule_gives() -> None:
    spec = OptimizerSpec(
        learning_rate=6e-4, min_learning_rate=0.0, warmup_steps=1000, zero_based=True
    )
    rate = learning_rate(spec, 37_920)
    assert float(rate(37_919)) == pytest.approx(1.0861e-12, rel=1e-4)
    assert float(rate(0)) == 0.0
    assert float(rate(1000)) == pytest.approx(6e-4)


def test_warmdown_rises_stays_and_falls_to_its_floor() -> None:
    spec = OptimizerSpec(
        learning_rate=1.0,
        min_learning_rate=0.05,
        warmup_steps=4,
        schedule="warmup-constant-warmdown",
        warmdown=0.5,
    )
    found = [float(learning_rate(spec, 20)(count)) for count in range(21)]
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[10] == 1.0
    assert found[15] == pytest.approx(0.525)
    assert found[20] == pytest.approx(0.05)
    assert all(a > b for a, b in itertools.pairwise(found[10:]))


def test_a_constant_rate_stays_and_a_group_has_its_own_on_the_same_schedule() -> None:
    spec = OptimizerSpec(learning_rate=1.0, min_learning_rate=0.5, warmup_steps=2)
    constant = spec.model_copy(update={"schedule": "constant"})
    rate = learning_rate(constant, 9)
    assert [float(rate(count)) for count in (0, 1, 8)] == pytest.approx([0.5, 1.0, 1.0])
    whole, part = learning_rate(spec, 9), learning_rate(spec, 9, 0.1)
    for count in range(9):
        assert float(part(count)) == pytest.approx(0.1 * float(whole(count)))


def test_momentum_and_weight_decay_follow_their_plans() -> None:
    spec = MuonSpec(
        momentum=0.9,
        momentum_start=0.5,
        momentum_warmup_steps=4,
        momentum_end=0.7,
        warmdown=0.5,
        weight_decay=2.0,
        weight_decay_schedule="cosine",
    )
    at = momentum(spec, 20)
    assert [float(at(n)) for n in (0, 2, 4, 10, 15, 20)] == pytest.approx(
        [0.5, 0.7, 0.9, 0.9, 0.8, 0.7]
    )
    plain = momentum(MuonSpec(), 20)
    assert {round(float(plain(n)), 6) for n in range(20)} == {0.95}
    decay = weight_decay(spec, 20)
    assert [float(decay(n)) for n in (0, 10, 20)] == pytest.approx([2.0, 1.0, 0.0], abs=1e-6)
    linear = weight_decay(spec.model_copy(update={"weight_decay_schedule": "linear"}), 20)
    assert float(linear(5)) == pytest.approx(1.5)


# ---- AdamW ---------------------------------------------------------------------------------------


@pytest.mark.reference
def test_adamw_is_that_of_pytorch_step_by_step() -> None:
    import torch

    spec = OptimizerSpec(learning_rate=1e-2, weight_decay=0.1, **FLAT)
    start, *gradients = drawn(*[(3, 5)] * 9)
    weight = torch.nn.Parameter(torch.from_numpy(np.array(start)))
    other = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for count, gradient in enumerate(gradients, 1):
        weight.grad = torch.from_numpy(np.array(gradient))
        other.step()
        found, _ = after(spec, {"w": start}, [{"w": one} for one in gradients[:count]])
        np.testing.assert_allclose(found["w"], weight.detach().numpy(), rtol=2e-6, atol=2e-7)


def test_a_group_of_weights_has_its_own_numbers_and_the_first_that_matches_counts() -> None:
    (start,), (gradient,) = drawn((2, 3)), drawn((2, 3), seed=1)
    groups = (
        GroupSpec(match="a", learning_rate=0.5, weight_decay=0.0),
        GroupSpec(match="*", b1=0.5),
    )
    spec = OptimizerSpec(learning_rate=0.1, groups=groups, **FLAT)
    given = {"a": start, "b": start}
    found, _ = after(spec, given, [{"a": gradient, "b": gradient}] * 2)
    for name, own in {"a": {"learning_rate": 0.5, "weight_decay": 0.0}, "b": {"b1": 0.5}}.items():
        alone = OptimizerSpec.model_validate({"learning_rate": 0.1, **FLAT, **own})
        expected, _ = after(alone, {name: start}, [{name: gradient}] * 2)
        np.testing.assert_array_equal(found[name], expected[name])
    assert not np.allclose(found["a"], found["b"])


def test_a_group_without_weights_is_refused_by_name() -> None:
    spec = OptimizerSpec(groups=(GroupSpec(match="head.*"),))
    with pytest.raises(Invalid, match=r"'head\.\*'; the weights are: a, b\.c") as told:
        optimizer(spec, 10).init({"a": jnp.ones(2), "b": {"c": jnp.ones(2)}})
    assert told.value.field == "/optimizer/groups/0/match"


def test_the_average_follows_the_weights_and_is_what_is_evaluated() -> None:
    start, *gradients = drawn(*[(4,)] * 4)
    spec = OptimizerSpec(average=0.9, **FLAT)
    params: Weights = {"w": start}
    expected = np.array(start)
    for count in range(1, 4):
        params, state = after(spec, {"w": start}, [{"w": one} for one in gradients[:count]])
        expected = 0.9 * expected + 0.1 * np.asarray(params["w"])
        kept = evaluated(spec, params, state)
        np.testing.assert_allclose(kept["w"], expected, rtol=1e-6)
    assert evaluated(OptimizerSpec(), params, ()) is params


# ---- Muon ----------------------------------------------------------------------------------------


def muon_by_hand(
    spec: MuonSpec, weight: np.ndarray[Any, Any], gradients: list[np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """Muon's formula in double precision, for one matrix [inputs, outputs]."""
    inputs, outputs = weight.shape
    along = 0 if outputs >= inputs else 1
    moment = np.zeros_like(weight)
    sizes = np.zeros_like(weight.mean(axis=along, keepdims=True))
    for gradient in gradients:
        moment = spec.momentum * moment + (1 - spec.momentum) * gradient
        x = spec.momentum * moment + (1 - spec.momentum) * gradient
        x = x / (np.linalg.norm(x) * 1.01 + 1e-6)
        for a, b, c in POLAR_EXPRESS:
            x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
        sizes = spec.b2 * sizes + (1 - spec.b2) * (x**2).mean(axis=along, keepdims=True)
        even = x / np.sqrt(np.maximum(sizes, 1e-10))
        even *= np.linalg.norm(x) / np.linalg.norm(even)
        rate = spec.learning_rate * max(1.0, outputs / inputs) ** 0.5
        weight = weight - rate * (even + spec.weight_decay * weight * (even * weight >= 0))
    return weight


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_muon_is_its_formula(shape: tuple[int, int]) -> None:
    spec = MuonSpec(learning_rate=0.1, min_learning_rate=0.1, weight_decay=0.5, **FLAT)
    start, *gradients = drawn(*[shape] * 4)
    found, _ = after(
        spec,
        {"feed": {"up": start}, "embedding": start},
        [{"feed": {"up": one}, "embedding": one} for one in gradients],
    )
    expected = muon_by_hand(spec, np.float64(start), [np.float64(one) for one in gradients])
    np.testing.assert_allclose(found["feed"]["up"], expected, rtol=2e-4, atol=2e-5)
    adam = OptimizerSpec(learning_rate=0.008, b1=0.8, b2=0.95, eps=1e-10, weight_decay=0.0, **FLAT)
    rest, _ = after(adam, {"w": start}, [{"w": one} for one in gradients])
    np.testing.assert_allclose(found["embedding"], rest["w"], rtol=1e-6)


def test_a_stack_of_layers_with_heads_moves_as_each_matrix_alone() -> None:
    spec = MuonSpec(**FLAT)
    start, gradient = drawn((3, 6, 2, 4), (3, 6, 2, 4))
    found, _ = after(spec, _attention(start), [_attention(gradient)] * 2)
    for layer in range(3):
        lone = start[layer].reshape(6, 8), gradient[layer].reshape(6, 8)
        alone, _ = after(spec, _feed(lone[0]), [_feed(lone[1])] * 2)
        stacked = found["attention"]["query"][layer].reshape(6, 8)
        np.testing.assert_allclose(stacked, alone["feed"]["up"], rtol=1e-4, atol=1e-6)


def _attention(array: Any) -> Weights:
    return {"attention": {"query": array}, "w": jnp.ones(2)}


def _feed(array: Any) -> Weights:
    return {"feed": {"up": array}, "w": jnp.ones(2)}


def test_an_update_of_muon_is_nearly_orthogonal() -> None:
    spec = MuonSpec(learning_rate=1.0, min_learning_rate=1.0, weight_decay=0.0, **FLAT)
    (gradient,) = drawn((8, 8))
    zero = jnp.zeros((8, 8))
    found, _ = after(spec, _feed(zero), [_feed(gradient)])
    singular = np.linalg.svd(np.asarray(found["feed"]["up"]), compute_uv=False)
    assert 0.5 < singular.min() <= singular.max() < 1.5


@pytest.mark.parametrize("name", ["slm-124m-tiny", "flaxchat-d12-tiny", "flaxchat-d12-gqa-tiny"])
def test_muon_takes_as_many_weights_as_the_config_says_are_in_matrices(name: str) -> None:
    model = MODEL_PRESETS[name]
    shapes = jax.eval_shape(lambda: initial_params(model, jax.random.key(0)))
    state = jax.eval_shape(optimizer(MuonSpec(), 10).init, shapes)
    held = {
        key: leaf.size for key, leaf in named_arrays(state).items() if ".matrices." in f".{key}"
    }
    in_momentum = sum(size for key, size in held.items() if ".momentum." in key)
    assert in_momentum == model.matrix_parameters
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state)) * 4
    assert sizes == pytest.approx(MuonSpec().state_bytes(model), rel=0.05)


# ---- the spec ------------------------------------------------------------------------------------


def test_an_optimizer_is_adamw_unless_it_says_otherwise() -> None:
    job = tiny_job(Path("/text"))
    assert isinstance(job.optimizer, OptimizerSpec)
    muon = {"kind": "muon", "warmup_steps": 2}
    assert tiny_job(Path("/text"), optimizer=muon).needs_protocol == 3


def test_older_agents_can_read_what_sets_no_younger_field() -> None:
    spec = OptimizerSpec()
    young: dict[str, Any] = {
        "schedule": "constant",
        "warmdown": 0.5,
        "zero_based": True,
        "groups": (GroupSpec(match="*"),),
        "average": 0.9,
    }
    assert spec.needs_protocol == 2
    assert not young.keys() & spec.model_dump().keys()
    for name, value in (young | {"clip_norm": None}).items():
        assert spec.model_copy(update={name: value}).needs_protocol == 3
