"""Causal self-attention by the fastest kernel that the device has.

cuDNN on GPUs and splash attention on TPUs take a window as a number and never hold a score for each
pair of tokens; XLA's own, everywhere else, does. Letters in shapes: b batch, t time, n query heads,
k key heads, h width of a head. Must not import the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import jax
import jax.numpy as jnp

LANES = 128  # splash attention works on blocks of multiples of so many tokens
LARGEST_BLOCK = 512
CUDNN_WIDEST_HEAD = 128  # before Hopper
HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


class Kernel(StrEnum):
    PLAIN = "plain"
    CUDNN = "cudnn"
    SPLASH = "splash"


def kernel_for(platform: str, length: int, head_dim: int, dtype: jnp.dtype) -> Kernel:
    """What attention over `length` tokens runs on; `platform` is JAX's word for the devices."""
    if platform == "gpu" and dtype in HALF and head_dim % 8 == 0 and head_dim <= CUDNN_WIDEST_HEAD:
        return Kernel.CUDNN
    if platform == "tpu" and length % LANES == 0:
        return Kernel.SPLASH
    return Kernel.PLAIN


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    window: int | None = None,
    kernel: Kernel | None = None,
) -> jax.Array:
    """query [b, t, n, h], key and value [b, t, k, h] -> [b, t, n, h].

    Each token sees itself and those before it: all, or the nearest `window` of them.
    """
    _, length, _, head_dim = query.shape
    if window is not None and window >= length:
        window = None
    if kernel is None:
        kernel = kernel_for(jax.default_backend(), length, head_dim, query.dtype)
    match kernel:
        case Kernel.SPLASH:
            return _splash(query, key, value, window)
        case Kernel.CUDNN | Kernel.PLAIN:
            # jax's own softmax promotes bfloat16 implicitly, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                return jax.nn.dot_product_attention(
                    query,
                    key,
                    value,
                    is_causal=True,
                    local_window_size=None if window is None else (window, 0),
                    implementation="cudnn" if kernel is Kernel.CUDNN else "xla",
                )


def _splash(query: jax.Array, key: jax.Array, value: jax.Array, window: int | None) -> jax.Array:
    _, length, heads, head_dim = query.shape
    run = _splash_kernel(length, heads, window, interpret=jax.default_backend() != "tpu")
    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)  # splash leaves that to its caller
    # It mixes integer types on purpose, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        mixed = jax.vmap(run)(*(x.swapaxes(1, 2) for x in (scaled, key, value)))
    return mixed.swapaxes(1, 2)


def _splash_kernel(
    length: int, heads: int, window: int | None, *, interpret: bool
) -> Callable[..., Any]:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    block = next(b for b in (LARGEST_BLOCK, LARGEST_BLOCK // 2, LANES) if length % b == 0)
    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window, 0), 0)
    sizes = kernels.BlockSizes(**dict.fromkeys(_BLOCKS, block))
    return kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads), block_sizes=sizes, interpret=interpret
    )


_BLOCKS = (
    "block_q",
    "block_kv",
    "block_kv_compute",
    "block_q_dkv",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_q_dq",
    "block_kv_dq",
)
