"""Kernels, rematerialization and the loss in chunks: each gives what the plain way gives."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import Kernel, attend, kernel_for
from model.build import initial_params, losses
from model.config import MODEL_PRESETS, LlamaConfig, NanochatConfig

QUICKLY = {"xla_backend_optimization_level": 0}  # to compile
HALF, SINGLE = jnp.dtype("bfloat16"), jnp.dtype("float32")


@pytest.mark.parametrize(
    ("platform", "length", "head_dim", "dtype", "kernel"),
    [
        ("gpu", 1024, 64, HALF, Kernel.CUDNN),
        ("gpu", 1024, 128, HALF, Kernel.CUDNN),
        ("gpu", 1024, 60, HALF, Kernel.PLAIN),
        ("gpu", 1024, 256, HALF, Kernel.PLAIN),
        ("gpu", 1024, 64, SINGLE, Kernel.PLAIN),
        ("tpu", 2048, 64, SINGLE, Kernel.SPLASH),
        ("tpu", 100, 64, HALF, Kernel.PLAIN),
        ("cpu", 1024, 64, HALF, Kernel.PLAIN),
    ],
)
def test_the_kernel_is_the_fastest_that_takes_the_shape(
    platform: str, length: int, head_dim: int, dtype: Any, kernel: Kernel
) -> None:
    assert kernel_for(platform, length, head_dim, dtype) is kernel


def some_heads(length: int) -> Iterator[jax.Array]:
    for index, heads in enumerate((4, 2, 2)):
        yield jax.random.normal(jax.random.key(index), (2, length, heads, 16))


@pytest.mark.parametrize("window", [None, 100])
def test_splash_attention_gives_what_the_plain_one_gives(window: int | None) -> None:
    """Interpreted: only a TPU can run it as it is."""
    query, key, value = some_heads(256)
    kernels = (Kernel.SPLASH, Kernel.PLAIN)
    splash, plain = (attend(query, key, value, window, each) for each in kernels)
    np.testing.assert_allclose(splash, plain, atol=2e-5)


def test_a_window_as_long_as_the_text_is_none() -> None:
    query, key, value = some_heads(32)
    whole = attend(query, key, value)
    np.testing.assert_array_equal(attend(query, key, value, 32), whole)
    assert not np.allclose(attend(query, key, value, 8), whole)


def small(name: str, **changes: Any) -> LlamaConfig | NanochatConfig:
    config = MODEL_PRESETS[name]
    small = {"dtype": "float32", "layers": 2, "context": 128, "loss_chunk": None}
    return type(config).model_validate(config.model_dump() | small | changes)


def loss_and_gradient(config: LlamaConfig | NanochatConfig) -> Any:
    make = functools.partial(initial_params, config)
    params = jax.jit(make, compiler_options=QUICKLY)(jax.random.key(0))
    rows = jax.random.randint(jax.random.key(1), (2, config.context + 1), 0, 257)
    loss_of = losses(config)
    run = jax.value_and_grad(lambda weights: loss_of(weights, rows, None).mean())
    return jax.jit(run, compiler_options=QUICKLY)(params)


def same(one: Any, other: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


@pytest.mark.parametrize("name", ["koda-1.3b-tiny", "flaxchat-d12-gqa-tiny"])
def test_chunks_of_the_loss_and_forgotten_activations_change_nothing(name: str) -> None:
    whole = loss_and_gradient(small(name))
    same(loss_and_gradient(small(name, loss_chunk=32, remat="dots")), whole)
    same(loss_and_gradient(small(name, remat="full")), whole)


def shapes_of(jaxpr: Any) -> set[tuple[int, ...]]:
    """Of every array that a program makes, those inside of its loops too."""
    found: set[tuple[int, ...]] = set()
    for equation in jaxpr.eqns:
        found |= {tuple(out.aval.shape) for out in equation.outvars if hasattr(out.aval, "shape")}
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")
        ):
            inside = getattr(inner, "jaxpr", inner)
            if hasattr(inside, "eqns"):
                found |= shapes_of(inside)
    return found


@pytest.mark.parametrize("chunk", [None, 32])
def test_no_logits_of_all_positions_are_held_when_in_chunks(chunk: int | None) -> None:
    config = small("slm-124m-tiny", loss_chunk=chunk)
    params = jax.eval_shape(lambda: initial_params(config, jax.random.key(0)))
    rows = jax.ShapeDtypeStruct((2, 129), jnp.int32)
    loss_of = losses(config)
    made = jax.make_jaxpr(jax.grad(lambda weights, rows: loss_of(weights, rows, None).mean()))(
        params, rows
    )
    logits = {shape for shape in shapes_of(made.jaxpr) if 257 in shape and 96 not in shape}
    assert any(math.prod(shape) >= 2 * 128 * 257 for shape in logits) is (chunk is None)
