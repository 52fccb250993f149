"""The parts that decoders are made of: norm, rotary positions, attention, gated feed-forward.

Owns layers and how their weights begin. Weights are float32 and every product is taken in the
config's `dtype`. Letters in shapes: b batch, t time, d hidden, n query heads, k key heads,
h width of a head, f feed-forward. Must not import the worker.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import LlamaConfig


def normal(key: jax.Array, shape: tuple[int, ...], std: float) -> nnx.Param[jax.Array]:
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


def compute_dtype(config: LlamaConfig) -> jnp.dtype:
    return jnp.dtype(config.dtype)


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


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each float32 [length, head_dim / 2]. Source: Su et al. 2021."""
    rates = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each head of x [b, t, n, h] by its position: dimension i is paired with i + h / 2."""
    cos, sin = (table[None, :, None, :] for table in tables)
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
        self.query = normal(keys[0], (d, n, h), d**-0.5)
        self.key = normal(keys[1], (d, k, h), d**-0.5)
        self.value = normal(keys[2], (d, k, h), d**-0.5)
        self.out = normal(keys[3], (n, h, d), (2 * config.layers * n * h) ** -0.5)

    def __call__(self, x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
        dtype = x.dtype
        query = rotate(jnp.einsum("btd,dnh->btnh", x, self.query[...].astype(dtype)), tables)
        key = rotate(jnp.einsum("btd,dkh->btkh", x, self.key[...].astype(dtype)), tables)
        value = jnp.einsum("btd,dkh->btkh", x, self.value[...].astype(dtype))
        # jax's own softmax promotes bfloat16 implicitly, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return jnp.einsum("btnh,nhd->btd", mixed, self.out[...].astype(dtype))


class SwiGLU(nnx.Module):
    """A feed-forward whose SiLU gate decides what passes. Source: Shazeer 2020."""

    def __init__(self, config: LlamaConfig, key: jax.Array) -> None:
        d, f = config.hidden, config.ffn
        keys = jax.random.split(key, 3)
        self.gate = normal(keys[0], (d, f), d**-0.5)
        self.up = normal(keys[1], (d, f), d**-0.5)
        self.down = normal(keys[2], (f, d), (2 * config.layers * f) ** -0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = x.dtype
        gate = jax.nn.silu(jnp.einsum("btd,df->btf", x, self.gate[...].astype(dtype)))
        up = jnp.einsum("btd,df->btf", x, self.up[...].astype(dtype))
        return jnp.einsum("btf,fd->btd", gate * up, self.down[...].astype(dtype))
