"""The parts that decoders are made of: norm, rotary positions, attention, gated feed-forward.

Owns layers and how their weights begin. Weights are float32 and every product is taken in the
config's `dtype`. Letters in shapes: b batch, t time, d hidden, n query heads, k key heads,
h width of a head, f feed-forward. Must not import the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import attend
from model.config import LlamaConfig, NanochatConfig
from model.shapes import Remat

Function = Callable[..., Any]
Tables = tuple[jax.Array, jax.Array]


def normal(key: jax.Array, shape: tuple[int, ...], std: float) -> nnx.Param[jax.Array]:
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


def uniform(
    key: jax.Array, shape: tuple[int, ...], low: float, high: float
) -> nnx.Param[jax.Array]:
    return nnx.Param(jax.random.uniform(key, shape, jnp.float32, low, high))


def compute_dtype(config: LlamaConfig | NanochatConfig) -> jnp.dtype:
    return jnp.dtype(config.dtype)


def forgetful(function: Function, remat: Remat) -> Function:
    """`function` that keeps for its backward pass only what `remat` says, and computes the rest."""
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return function
        case "dots":
            return jax.checkpoint(function, policy=policies.dots_saveable)
        case "full":
            return jax.checkpoint(function, policy=policies.nothing_saveable)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x [b, ...] and scales the rest up; without keys, returns x.

    `keys` [b] has a key for each sequence, so that what is dropped does not depend on how the
    batch is split over devices.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def split_each(keys: jax.Array, parts: int) -> jax.Array:
    """keys [b] -> [parts, b]."""
    return jax.vmap(lambda key: jax.random.split(key, parts), out_axes=1)(keys)


def rotary_tables(length: int, head_dim: int, theta: float) -> Tables:
    """Cosines and sines, each float32 [length, head_dim / 2]. Source: Su et al. 2021."""
    rates = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: Tables, *, interleaved: bool = False) -> jax.Array:
    """Turns each head of x [b, t, n, h] by its position.

    Dimension i is paired with i + h / 2, or, `interleaved`, each even one with the next.
    """
    cos, sin = (table[None, :, None, :] for table in tables)
    if interleaved:
        pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return turned.reshape(x.shape).astype(x.dtype)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


class RMSNorm(nnx.Module):
    """x over its root mean square, times a learned scale that begins at one; in float32."""

    def __init__(self, width: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(power + self.eps) * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention in which `heads / kv_heads` query heads share a key head."""

    def __init__(self, config: LlamaConfig, key: jax.Array) -> None:
        d, n, k, h = config.hidden, config.heads, config.kv_heads, config.head_dim
        keys = jax.random.split(key, 4)
        into, out = config.init_std or d**-0.5, (2 * config.layers * n * h) ** -0.5
        self.query = normal(keys[0], (d, n, h), into)
        self.key = normal(keys[1], (d, k, h), into)
        self.value = normal(keys[2], (d, k, h), into)
        self.out = normal(keys[3], (n, h, d), config.init_std or out)
        self.interleaved = config.rope_pairs == "interleaved"

    def __call__(self, x: jax.Array, tables: Tables) -> jax.Array:
        dtype, pairs = x.dtype, self.interleaved
        query = jnp.einsum("btd,dnh->btnh", x, self.query[...].astype(dtype))
        query = rotate(query, tables, interleaved=pairs)
        key = jnp.einsum("btd,dkh->btkh", x, self.key[...].astype(dtype))
        key = rotate(key, tables, interleaved=pairs)
        value = jnp.einsum("btd,dkh->btkh", x, self.value[...].astype(dtype))
        mixed = attend(query, key, value)
        return jnp.einsum("btnh,nhd->btd", mixed, self.out[...].astype(dtype))


class SwiGLU(nnx.Module):
    """A feed-forward whose SiLU gate decides what passes. Source: Shazeer 2020."""

    def __init__(self, config: LlamaConfig, key: jax.Array) -> None:
        d, f = config.hidden, config.ffn
        keys = jax.random.split(key, 3)
        into, out = config.init_std or d**-0.5, (2 * config.layers * f) ** -0.5
        self.gate = normal(keys[0], (d, f), into)
        self.up = normal(keys[1], (d, f), into)
        self.down = normal(keys[2], (f, d), config.init_std or out)

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = x.dtype
        gate = jax.nn.silu(jnp.einsum("btd,df->btf", x, self.gate[...].astype(dtype)))
        up = jnp.einsum("btd,df->btf", x, self.up[...].astype(dtype))
        return jnp.einsum("btf,fd->btd", gate * up, self.down[...].astype(dtype))
