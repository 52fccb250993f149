"""Muon as optax transformations: momentum, Polar Express, NorMuon; and cautious weight decay.

Owns the arithmetic of matrices alone; which weights are matrices, and how they lie, is told by the
model. A weight may hold many matrices, one for each layer, and heads side by side. Letters in
shapes: l layers, i inputs, o outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model.matrices import MatrixAxes, matrix_axes
from worker.digest import dotted
from worker.schedules import Curve

# Coefficients of x, x³ and x⁵ for five steps, and by how much the norm is held below 1 before them.
# Source: Amsel et al. 2025, arXiv:2505.16932, in the numbers that nanochat uses.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
MARGIN = 1.01
NORM_EPS = 1e-6
LEAST_SIZE = 1e-10


class MuonState(NamedTuple):
    """`momentum` is like the weights; `sizes` [l, i or o] has a mean square for each row.

    The rows of a matrix run along its shorter side.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    momentum: optax.Updates
    sizes: optax.Updates


def scale_by_muon(momentum: Curve, b2: float) -> optax.GradientTransformation:
    """Gradients of matrices -> their momentum, nearly orthogonal, its rows evened out over time."""

    def init(params: optax.Params) -> MuonState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        rows = _named(lambda axes, each: _row_sizes(_matrices(each, axes)), zeros)
        return MuonState(jnp.zeros((), jnp.int32), zeros, rows)

    def update(
        updates: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        del params
        beta = momentum(state.count)

        def toward(old: jax.Array, new: jax.Array) -> jax.Array:
            return beta * old + (1 - beta) * new

        moved = jax.tree.map(toward, state.momentum, updates)
        ahead = jax.tree.map(toward, moved, updates)  # Nesterov's look ahead
        turned = _named(lambda axes, each: orthogonal(_matrices(each, axes)), ahead)
        sizes = jax.tree.map(
            lambda old, new: b2 * old + (1 - b2) * _row_sizes(new), state.sizes, turned
        )
        even = jax.tree.map(_evened, turned, sizes)
        lying = jax.tree.map(lambda each, like: each.reshape(like.shape), even, updates)
        return lying, MuonState(state.count + 1, moved, sizes)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


class CountState(NamedTuple):
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def apply_rate(rate: Curve, decay: Curve) -> optax.GradientTransformation:
    """Updates of matrices -> what is added to them, with cautious weight decay.

    A matrix with more outputs than inputs moves by the root of their ratio more. A weight decays
    only where that goes the way of its update. Source: Chen et al. 2025, arXiv:2510.12402.
    """

    def init(params: optax.Params) -> CountState:
        del params
        return CountState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: CountState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, CountState]:
        by, shrink = rate(state.count), decay(state.count)

        def step(axes: MatrixAxes, each: jax.Array, weight: jax.Array) -> jax.Array:
            decayed = jnp.where(each * weight >= 0, weight, jnp.zeros_like(weight))
            return -by * _wider(each.shape, axes) * (each + shrink * decayed)

        return _named(step, updates, params), CountState(state.count + 1)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def orthogonal(x: jax.Array) -> jax.Array:
    """[l, i, o] -> the nearest matrices with orthogonal rows, roughly: singular values near 1."""
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))
    x = x / (norm * MARGIN + NORM_EPS)
    tall = x.shape[1] > x.shape[2]
    x = x.swapaxes(1, 2) if tall else x
    for linear, cubic, quintic in POLAR_EXPRESS:
        square = x @ x.swapaxes(1, 2)
        x = linear * x + (cubic * square + quintic * square @ square) @ x
    return x.swapaxes(1, 2) if tall else x


def _named(run: Callable[..., jax.Array], tree: Any, *more: Any) -> Any:
    """`run` over the weights of trees, told of each how it lies."""

    def one(path: Any, *leaves: jax.Array) -> jax.Array:
        axes = matrix_axes(dotted(path))
        if axes is None:
            raise ValueError(f"{dotted(path)} is no matrix of a block")
        return run(axes, *leaves)

    return jax.tree_util.tree_map_with_path(one, tree, *more)


def _sides(shape: tuple[int, ...], axes: MatrixAxes) -> tuple[int, int, int]:
    """Layers, inputs and outputs."""
    split, end = len(shape) - axes.outputs, len(shape) - axes.outputs - axes.inputs
    return math.prod(shape[:end]), math.prod(shape[end:split]), math.prod(shape[split:])


def _matrices(x: jax.Array, axes: MatrixAxes) -> jax.Array:
    return x.reshape(_sides(x.shape, axes))


def _wider(shape: tuple[int, ...], axes: MatrixAxes) -> float:
    _, inputs, outputs = _sides(shape, axes)
    return math.sqrt(max(1.0, outputs / inputs))


def _short_side(x: jax.Array) -> int:
    """The axis that a row runs along; of a square matrix, that of the inputs."""
    return 1 if x.shape[2] >= x.shape[1] else 2


def _row_sizes(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(x), axis=_short_side(x))


def _evened(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Each row over the root of its size over time; the matrix keeps its norm.

    Source: Li et al. 2025, arXiv:2510.05491.
    """
    scale = jax.lax.rsqrt(jnp.maximum(sizes, LEAST_SIZE))
    even = x * jnp.expand_dims(scale, _short_side(x))
    before, after = (jnp.sum(jnp.square(y), axis=(1, 2), keepdims=True) for y in (x, even))
    return even * jnp.sqrt(before / jnp.maximum(after, LEAST_SIZE))
