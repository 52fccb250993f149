"""The training state and what changes it: one optimizer update, to be compiled.

Everything that decides the next update is in the state: weights, optimizer, random key, step, and
the place in the data plan. Must not read files or clocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from model.build import Losses, Params, initial_params, losses
from worker.mesh import EACH_DEVICE, ROWS, ROWS_KEYS
from worker.optim import optimizer
from worker.protocol import JobSpec
from worker.schedules import learning_rate


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state after `step` updates; `next_batch` is the plan's index of the batch to come."""

    params: Params
    optimizer: optax.OptState
    rng: jax.Array  # uint32 [2], the data of a threefry key; split once a step
    step: jax.Array  # int32
    next_batch: jax.Array  # int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepResult:
    """Scalars of one update; `leave` and `save` are above zero when some host wishes so."""

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    leave: jax.Array
    save: jax.Array


TrainStep = Callable[
    [TrainState, jax.Array, jax.Array, jax.Array],
    tuple[TrainState, StepResult],
]
Tree = TypeVar("Tree")
SIGNALS = 2  # a host wishes to leave, a host wishes to save
EvalStep = Callable[[Params, jax.Array], jax.Array]


def initial_state(job: JobSpec, first_batch: int) -> TrainState:
    """The state before the first update, from the job's seed alone. Pure; may be compiled."""
    weights_key, dropout_key = jax.random.split(jax.random.key(job.seed))
    params = initial_params(job.model, weights_key)
    return TrainState(
        params=params,
        optimizer=optimizer(job.optimizer, job.steps).init(params),
        rng=jax.random.key_data(dropout_key),
        step=jnp.zeros((), jnp.int32),
        next_batch=jnp.asarray(first_batch, jnp.int32),
    )


def train_step(job: JobSpec, mesh: Mesh) -> TrainStep:
    """The function (state, rows int32 [microbatches, b, context + 1], next batch's index int32,
    signals int32 [devices, SIGNALS]) -> (state one step on, result)."""
    update = optimizer(job.optimizer, job.steps)
    rate = learning_rate(job.optimizer, job.steps)
    gradients = jax.shard_map(
        functools.partial(_gradients, losses(job.model), mesh),
        mesh=mesh,
        in_specs=(PartitionSpec(), ROWS, ROWS_KEYS, EACH_DEVICE),
        out_specs=PartitionSpec(),
        check_vma=False,  # else JAX sums each weight's gradient across devices on its own
    )

    def step(
        state: TrainState, rows: jax.Array, next_batch: jax.Array, signals: jax.Array
    ) -> tuple[TrainState, StepResult]:
        carried, used = jax.random.split(jax.random.wrap_key_data(state.rng))
        keys = jax.random.split(used, rows.shape[:2])
        gradient, loss, wished = gradients(state.params, rows, keys, signals)
        changes, moments = update.update(gradient, state.optimizer, state.params)
        after = TrainState(
            params=optax.apply_updates(state.params, changes),  # pyright: ignore[reportArgumentType]
            optimizer=moments,
            rng=jax.random.key_data(carried),
            step=state.step + 1,
            next_batch=next_batch,
        )
        norm = optax.tree.norm(gradient)
        return after, StepResult(loss, norm, rate(state.step), wished[0], wished[1])

    return step


def _gradients(
    losses_of: Losses,
    mesh: Mesh,
    params: Params,
    rows: jax.Array,
    keys: jax.Array,
    signals: jax.Array,
) -> tuple[Params, jax.Array, jax.Array]:
    """On one device: its microbatches one after the other, then the mean over all devices.

    Returns the gradient, the loss, and for each wish the share of devices that have it.
    """

    def add(total: tuple[Params, jax.Array], part: tuple[jax.Array, jax.Array]):
        loss, gradient = jax.value_and_grad(lambda weights: losses_of(weights, *part).mean())(
            params
        )
        return jax.tree.map(jnp.add, total, (gradient, loss)), None

    zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))
    total, _ = jax.lax.scan(add, zero, (rows, keys))
    gradient, loss = jax.tree.map(lambda x: x / rows.shape[0], total)
    return _mean_over_devices((gradient, loss, signals.astype(jnp.float32).mean(axis=0)), mesh)


def _mean_over_devices(tree: Tree, mesh: Mesh) -> Tree:
    """One collective for everything: gloo pairs the collectives of two processes by their order,
    and a program loaded from the compile cache may run independent ones in another order than a
    program just compiled, which ends the gang."""
    if mesh.size == 1:
        return tree
    vector, restore = ravel_pytree(tree)
    return restore(jax.lax.psum(vector, mesh.axis_names) / mesh.size)


def vote_step(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """The function int32 signals [devices, SIGNALS] -> the share of devices with each wish."""

    def vote(signals: jax.Array) -> jax.Array:
        return _mean_over_devices(signals.astype(jnp.float32).mean(axis=0), mesh)

    return jax.shard_map(
        vote, mesh=mesh, in_specs=EACH_DEVICE, out_specs=PartitionSpec(), check_vma=False
    )


def eval_step(job: JobSpec) -> EvalStep:
    """The function (params, rows int32 [microbatches, b, context + 1]) -> mean loss, no dropout."""
    losses_of = losses(job.model)

    def evaluate(params: Params, rows: jax.Array) -> jax.Array:
        return jax.lax.map(lambda part: losses_of(params, part, None), rows).mean()

    return evaluate
