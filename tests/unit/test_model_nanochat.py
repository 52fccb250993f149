"""The nanochat-style decoder: its order in time, its windows, and that each of its parts counts."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.build import Forward, Params, forward, initial_params
from model.config import NanochatConfig
from model.nanochat import period

QUICKLY = {"xla_backend_optimization_level": 0}  # to compile
SMALL: dict[str, Any] = {
    "vocab_size": 70,
    "context": 24,
    "layers": 4,
    "hidden": 32,
    "heads": 4,
    "kv_heads": 2,
    "tied": False,
    "dtype": "float32",
    "remat": "none",
}


def config(**changes: Any) -> NanochatConfig:
    return NanochatConfig.model_validate(SMALL | changes)


@functools.cache
def _compiled(shape: NanochatConfig) -> Forward:
    return jax.jit(forward(shape), compiler_options=QUICKLY)


def run(shape: NanochatConfig, params: Params, tokens: jax.Array) -> jax.Array:
    return _compiled(shape)(params, tokens, None)


def stirred(shape: NanochatConfig) -> Params:
    """Weights as if trained a while: those that begin at zero do nothing yet."""
    params = jax.jit(lambda: initial_params(shape, jax.random.key(0)), compiler_options=QUICKLY)()
    leaves, tree = jax.tree.flatten(params)
    chance = np.random.default_rng(1)
    moved = [leaf + 0.1 * chance.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, moved)


def tokens(rows: int = 2, length: int = 24) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (rows, length), 0, 70)


def test_a_token_changes_nothing_before_it_and_everything_after() -> None:
    shape = config()
    params, place = stirred(shape), 9
    before = run(shape, params, tokens())
    after = run(shape, params, tokens().at[:, place].add(1) % 70)
    assert jnp.array_equal(before[:, :place], after[:, :place])
    assert (jnp.abs(before - after)[:, place:].max(axis=(0, 2)) > 0).all()
    assert before.dtype == jnp.float32
    assert before.shape == (2, 24, 70)


def unstacked(params: Params, many: int, layers: int) -> Params:
    """The weights of a scanned model by the names of one whose layers are a list."""
    groups: Any = params["groups"]
    rest = {name: each for name, each in params.items() if name != "groups"}
    blocks = {
        index: jax.tree.map(lambda leaf, index=index: leaf[index // many], groups[index % many])
        for index in range(layers)
    }
    return rest | {"blocks": blocks}


@pytest.mark.parametrize("pattern", ["SSSL", "SL"])
def test_layers_run_by_scan_or_one_by_one_give_the_same(pattern: str) -> None:
    shape = config(window_pattern=pattern, context=260)
    many = period(shape)
    assert many == len(pattern)
    params = stirred(shape)
    found = run(shape, params, tokens())
    one_by_one = shape.model_copy(update={"scan_layers": False})
    listed = run(one_by_one, unstacked(params, many, 4), tokens())
    np.testing.assert_allclose(found, listed, rtol=1e-4, atol=1e-4)


def test_the_last_layer_must_see_all_so_an_odd_depth_repeats_nothing() -> None:
    assert period(config(layers=6, context=260)) == 6
    assert period(config(layers=8, context=260)) == 4
    assert period(config(layers=8)) == 2  # no window is short of so small a context


def test_a_short_window_hides_what_is_far_away() -> None:
    """A layer that sees 128 tokens back cannot tell what was before; smear reaches one further."""
    shape = config(layers=2, context=512, window_pattern="S", hidden=32)
    assert shape.windows == (128, None)
    params = stirred(shape)
    far = tokens(1, 200)
    blocks: Any = params["groups"]
    blocks[1]["attention"]["out"] *= 0  # the layer that sees all adds nothing
    before, after = (run(shape, params, each) for each in (far, far.at[:, 10].add(1) % 70))
    changed = jnp.abs(before - after).max(axis=(0, 2)) > 1e-6
    assert changed[10 : 10 + 128].all()
    assert not changed[10 + 130 :].any()


WITHOUT = {
    "resid_lambdas": lambda params: params | {"resid_lambdas": jnp.ones(4)},
    "x0_lambdas": lambda params: params | {"x0_lambdas": jnp.zeros(4)},
    "smear": lambda params: params | {"smear_lambda": jnp.zeros(1)},
    "backout": lambda params: params | {"backout_lambda": jnp.zeros(1)},
}


@pytest.mark.parametrize("part", WITHOUT)
def test_each_part_counts(part: str) -> None:
    shape = config()
    params = stirred(shape)
    with_it, without = (run(shape, each, tokens()) for each in (params, WITHOUT[part](params)))
    assert jnp.abs(with_it - without).max() > 1e-3


def test_value_embeddings_are_in_the_layers_that_the_config_names_and_count() -> None:
    shape = config(scan_layers=False)
    params = stirred(shape)
    blocks: Any = params["blocks"]
    assert tuple("values" in blocks[index]["attention"] for index in range(4)) == shape.valued
    before = run(shape, params, tokens())
    blocks[3]["attention"]["values"] *= 2
    assert jnp.abs(before - run(shape, params, tokens())).max() > 1e-3


def test_logits_are_held_within_the_cap() -> None:
    shape = config()
    params = stirred(shape)
    loud = params | {"head": params["head"] * 1e4}
    logits = run(shape, loud, tokens())
    assert 14.9 < float(jnp.abs(logits).max()) <= 15.0


def test_it_begins_as_its_embedding_so_that_only_the_token_itself_counts() -> None:
    """What writes to the residual stream is 0 at first, and so is the smear."""
    shape = config()
    params = initial_params(shape, jax.random.key(0))
    logits = run(shape, params, tokens())
    shuffled = run(shape, params, tokens()[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(logits, shuffled, atol=1e-6)


def by_hand(shape: NanochatConfig, params: Any, row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The decoder in plain NumPy and double precision, for one row and whole windows."""

    def norm(x: Any) -> Any:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)

    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    half, length = shape.head_dim // 2, len(row)
    angles = np.arange(length)[:, None] * shape.rope_theta ** (-np.arange(half) / half)

    def turned(x: Any) -> Any:
        first, second, cos, sin = x[..., :half], x[..., half:], np.cos(angles), np.sin(angles)
        cos, sin = cos[:, None], sin[:, None]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x = norm(params["embedding"][row])
    gate = params["smear_lambda"] * sigmoid(x[1:, :24] @ params["smear_gate"])[:, None]
    x = first = np.concatenate([x[:1], x[1:] + gate * x[:-1]])
    after: list[Any] = []
    for index in range(shape.layers):
        block = params["blocks"][index]
        attention, feed = block["attention"], block["feed"]
        x = params["resid_lambdas"][index] * x + params["x0_lambdas"][index] * first
        y = norm(x)
        names = ("query", "key", "value")
        query, key, value = (np.einsum("td,dnh->tnh", y, attention[name]) for name in names)
        if shape.valued[index]:
            gate = 3 * sigmoid(y[:, :12] @ attention["gate"])
            value = value + gate[..., None] * attention["values"][row]
        query, key = norm(turned(query)) * 1.2, norm(turned(key)) * 1.2
        shared = shape.heads // shape.kv_heads
        key, value = (np.repeat(each, shared, axis=1) for each in (key, value))
        scores = np.einsum("tnh,snh->nts", query, key) / np.sqrt(shape.head_dim)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        seen = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen /= seen.sum(axis=-1, keepdims=True)
        x = x + np.einsum("nts,snh,nhd->td", seen, value, attention["out"])
        x = x + np.maximum(norm(x) @ feed["up"], 0) ** 2 @ feed["down"]
        after.append(x)
    x = norm(x - params["backout_lambda"] * after[shape.layers // 2])
    logits = x @ params["head"][: shape.vocab_size].T
    return 15 * np.tanh(logits / 15)


def test_logits_are_those_of_a_plain_statement() -> None:
    shape = config(scan_layers=False)
    params = stirred(shape)
    double = jax.tree.map(np.float64, jax.device_get(params))
    found = run(shape, params, tokens())
    for row, logits in zip(np.asarray(tokens()), found, strict=True):
        np.testing.assert_allclose(logits, by_hand(shape, double, row), atol=2e-4)
