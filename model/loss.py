"""Cross-entropy, over all positions at once or a chunk of them at a time.

Must not import the worker.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def chunked_losses(
    logits_of: Callable[[jax.Array], jax.Array], x: jax.Array, targets: jax.Array, chunk: int
) -> jax.Array:
    """Mean cross-entropy in nats of each sequence: x [b, t, d], targets int32 [b, t] -> [b].

    Only `chunk` positions have their logits at once, going forward and back; t divides into them.
    """
    batch, length = targets.shape
    parts = length // chunk

    def in_parts(array: jax.Array) -> jax.Array:
        return array.reshape(batch, parts, chunk, *array.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + losses_of(logits_of(part[0]), part[1]).sum(axis=-1), None

    nothing = jnp.zeros((batch,), jnp.float32)
    total, _ = jax.lax.scan(add, nothing, (in_parts(x), in_parts(targets)))
    return total / length


def losses_of(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits float32 [b, t, v], targets int32 [b, t] -> cross-entropy in nats [b, t]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
