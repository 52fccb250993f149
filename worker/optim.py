"""AdamW and its learning rate, as the spec words them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from model.build import Params
from worker.protocol import OptimizerSpec


def learning_rate(spec: OptimizerSpec, steps: int) -> Callable[[ArrayLike], jax.Array]:
    """The rate of the update number `count`, which counts from 0.

    It rises in equal parts to `learning_rate` at the update `warmup_steps`, then follows a cosine
    that reaches `min_learning_rate` with the last update.
    """
    peak, floor, warmup = spec.learning_rate, spec.min_learning_rate, spec.warmup_steps

    def at(count: ArrayLike) -> jax.Array:
        update = jnp.asarray(count, jnp.float32) + 1.0
        rising = peak * update / max(warmup, 1)
        progress = jnp.clip((update - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        falling = floor + (peak - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(update <= warmup, rising, falling)

    return at


def matrices(params: Params) -> Params:
    """True where weight decay applies: everywhere but on the scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) != "scale", params
    )


def optimizer(spec: OptimizerSpec, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(spec.clip_norm),
        optax.adamw(
            learning_rate(spec, steps),
            b1=spec.b1,
            b2=spec.b2,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            mask=matrices,
        ),
    )
