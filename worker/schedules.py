"""What changes over a run by plan: learning rate, momentum, weight decay.

Each is a function of the update's number `count`, which counts from 0. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from worker.protocol import AnyOptimizer, MuonSpec, OptimizerSpec

Curve = Callable[[ArrayLike], jax.Array]


def learning_rate(spec: AnyOptimizer, steps: int, peak: float | None = None) -> Curve:
    """The rate of each update; `peak` stands in for the spec's own, and the floor goes with it."""
    highest, floor = spec.learning_rate, spec.min_learning_rate
    if peak is not None:
        highest, floor = peak, floor * peak / highest
    warmup = spec.warmup_steps
    match spec.schedule:
        case "warmup-cosine" if isinstance(spec, OptimizerSpec) and spec.zero_based:
            return _zero_based_cosine(highest, floor, warmup, steps)
        case "warmup-cosine":
            return _cosine(highest, floor, warmup, steps)
        case "warmup-constant-warmdown":
            return _warmdown(highest, floor, warmup, steps, spec.warmdown)
        case "constant":
            return _warmdown(highest, highest, warmup, steps, 1.0)
        case _:
            assert_never(spec.schedule)


def momentum(spec: MuonSpec, steps: int) -> Curve:
    """It rises from `momentum_start` and falls to `momentum_end`, where these are given."""
    start = spec.momentum if spec.momentum_start is None else spec.momentum_start
    end = spec.momentum if spec.momentum_end is None else spec.momentum_end

    def at(count: ArrayLike) -> jax.Array:
        risen = jnp.clip(_float(count) / max(spec.momentum_warmup_steps, 1), 0.0, 1.0)
        left = _share_left(count, steps, spec.warmdown)
        return jnp.where(
            left < 1.0,
            end + (spec.momentum - end) * left,
            start + (spec.momentum - start) * risen,
        )

    return at


def weight_decay(spec: MuonSpec, steps: int) -> Curve:
    def at(count: ArrayLike) -> jax.Array:
        done = _float(count) / steps
        match spec.weight_decay_schedule:
            case "constant":
                share = jnp.ones_like(done)
            case "linear":
                share = 1.0 - done
            case "cosine":
                share = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        return spec.weight_decay * share

    return at


def _cosine(peak: float, floor: float, warmup: int, steps: int) -> Curve:
    """It rises in equal parts to `peak` at the update `warmup`, then follows a cosine that reaches
    `floor` with the last update."""

    def at(count: ArrayLike) -> jax.Array:
        update = jnp.asarray(count, jnp.float32) + 1.0
        rising = peak * update / max(warmup, 1)
        progress = jnp.clip((update - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        falling = floor + (peak - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(update <= warmup, rising, falling)

    return at


def _zero_based_cosine(peak: float, floor: float, warmup: int, steps: int) -> Curve:
    """It begins at 0 and would reach `floor` one update after the last.

    (1 + cos) / 2 is written as a squared sine of what is left: near the end float32 knows the small
    rest well, and the sum of 1 and nearly -1 hardly.
    """

    def at(count: ArrayLike) -> jax.Array:
        update = _float(count)
        left = jnp.clip((steps - update) / max(steps - warmup, 1), 0.0, 1.0)
        falling = floor + (peak - floor) * jnp.square(jnp.sin(0.5 * jnp.pi * left))
        return jnp.where(update < warmup, peak * update / max(warmup, 1), falling)

    return at


def _warmdown(peak: float, floor: float, warmup: int, steps: int, share: float) -> Curve:
    """It rises in equal parts to `peak` at the update `warmup`, and over the last `share` of the
    run falls in a line that would reach `floor` one update after the last."""

    def at(count: ArrayLike) -> jax.Array:
        risen = jnp.minimum((_float(count) + 1.0) / max(warmup, 1), 1.0)
        return jnp.minimum(peak * risen, floor + (peak - floor) * _share_left(count, steps, share))

    return at


def _share_left(count: ArrayLike, steps: int, share: float) -> jax.Array:
    """1 until the last `share` of the run, then what is left of it."""
    return jnp.clip((steps - _float(count)) / max(round(share * steps), 1), 0.0, 1.0)


def _float(count: ArrayLike) -> jax.Array:
    return jnp.asarray(count, jnp.float32)
