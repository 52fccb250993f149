"""The decoder: its size, its order in time, and that its switches change what they should."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.build import Forward, Params, forward, initial_params
from model.config import LlamaConfig

SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "context": 12,
    "layers": 2,
    "hidden": 24,
    "heads": 4,
    "kv_heads": 2,
    "ffn": 40,
    "dtype": "float32",
}
QUICKLY = {"xla_backend_optimization_level": 0}  # to compile


def config(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**(SMALL | changes))


@functools.cache
def weights(shape: LlamaConfig) -> Params:
    make = jax.jit(lambda: initial_params(shape, jax.random.key(0)), compiler_options=QUICKLY)
    return make()


def run(shape: LlamaConfig, tokens: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    return _compiled(shape)(weights(shape), tokens, keys)


@functools.cache
def _compiled(shape: LlamaConfig) -> Forward:
    return jax.jit(forward(shape), compiler_options=QUICKLY)


def some_tokens(rows: int = 2, length: int = 12) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (rows, length), 0, 257)


@pytest.mark.parametrize(
    "shape",
    [
        config(),
        config(tied=True),
        config(kv_heads=4),
        config(kv_heads=1, head_dim=10),
        config(scan_layers=False, layers=3),
        config(scan_layers=False, tied=True, kv_heads=1),
    ],
    ids=str,
)
def test_parameters_are_as_many_as_the_config_says(shape: LlamaConfig) -> None:
    params = jax.eval_shape(lambda: initial_params(shape, jax.random.key(0)))
    leaves = jax.tree.leaves(params)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == shape.parameters
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_changes_nothing_before_it(dtype: str) -> None:
    shape = config(dtype=dtype)
    tokens, place = some_tokens(), 7
    before = run(shape, tokens)
    after = run(shape, tokens.at[:, place].add(1))
    assert jnp.array_equal(before[:, :place], after[:, :place])
    assert not jnp.array_equal(before[:, place], after[:, place])
    assert before.dtype == jnp.float32


def test_layers_run_by_scan_or_one_by_one_give_the_same() -> None:
    scanned, listed = config(dropout=0.5), config(dropout=0.5, scan_layers=False)
    tokens, keys = some_tokens(), jax.random.split(jax.random.key(2), 2)
    for dropout_keys in (None, keys):
        one, other = (run(shape, tokens, dropout_keys) for shape in (scanned, listed))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_first_loss_is_that_of_a_guess(tied: bool) -> None:
    shape = config(tied=tied, hidden=128, ffn=256)
    logits = run(shape, some_tokens(8))
    guesses = jax.nn.log_softmax(logits)[:, :-1]
    targets = some_tokens(8)[:, 1:]
    loss = -jnp.take_along_axis(guesses, targets[..., None], axis=-1).mean()
    assert float(loss) == pytest.approx(math.log(257), abs=0.2)


def test_position_counts() -> None:
    shape = config(layers=1)
    logits = run(shape, jnp.array([[5, 9, 5, 9, 7]]))
    swapped = run(shape, jnp.array([[9, 5, 5, 9, 7]]))
    assert not np.allclose(logits[0, -1], swapped[0, -1], atol=1e-6)


def test_dropout_follows_each_sequence_key_alone() -> None:
    shape = config(dropout=0.5)
    tokens, keys = some_tokens(3), jax.random.split(jax.random.key(2), 3)
    whole = run(shape, tokens, keys)
    alone = run(shape, tokens[1:2], keys[1:2])
    np.testing.assert_allclose(whole[1:2], alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(whole, run(shape, tokens), atol=1e-3)
    assert not np.allclose(whole, run(shape, tokens, keys[::-1]), atol=1e-3)
