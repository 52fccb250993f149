"""The training state and what changes it: one optimizer update, to be compiled.

Everything that decides the next update is in the state: weights, optimizer, random key, step, and
the place in the data plan. Must not read files or clocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from model.build import Forward, Params, forward, initial_params
from worker.optim import learning_rate, optimizer
from worker.protocol import JobSpec


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
    """Scalars of one update. `signal` is the highest wish of any host."""

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    signal: jax.Array


TrainStep = Callable[
    [TrainState, jax.Array, jax.Array, jax.Array],
    tuple[TrainState, StepResult],
]
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


def mean_loss(
    apply: Forward, params: Params, rows: jax.Array, dropout_key: jax.Array | None
) -> jax.Array:
    """Mean cross-entropy in nats over rows int32 [b, context + 1], each token from those before."""
    logits = apply(params, rows[:, :-1], dropout_key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


def train_step(job: JobSpec) -> TrainStep:
    """The function (state, rows int32 [microbatches, b, context + 1], next batch's index int32,
    signals int32 [devices]) -> (state one step on, result)."""
    apply = forward(job.model)
    update = optimizer(job.optimizer, job.steps)
    rate = learning_rate(job.optimizer, job.steps)
    parts = job.batch.microbatches

    def gradients(params: Params, rows: jax.Array, key: jax.Array) -> tuple[jax.Array, Params]:
        """The mean loss and gradient of all microbatches, one after the other."""

        def add(total: tuple[jax.Array, Params], part: tuple[jax.Array, jax.Array]):
            found = jax.value_and_grad(lambda p: mean_loss(apply, p, *part))(params)
            return jax.tree.map(jnp.add, total, found), None

        zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, (rows, jax.random.split(key, parts)))
        return jax.tree.map(lambda x: x / parts, total)

    def step(
        state: TrainState, rows: jax.Array, next_batch: jax.Array, signals: jax.Array
    ) -> tuple[TrainState, StepResult]:
        carried, used = jax.random.split(jax.random.wrap_key_data(state.rng))
        loss, gradient = gradients(state.params, rows, used)
        changes, moments = update.update(gradient, state.optimizer, state.params)
        after = TrainState(
            params=optax.apply_updates(state.params, changes),  # pyright: ignore[reportArgumentType]
            optimizer=moments,
            rng=jax.random.key_data(carried),
            step=state.step + 1,
            next_batch=next_batch,
        )
        norm = optax.tree.norm(gradient)
        return after, StepResult(loss, norm, rate(state.step), signals.max())

    return step


def eval_step(job: JobSpec) -> EvalStep:
    """The function (params, rows int32 [microbatches, b, context + 1]) -> mean loss, no dropout."""
    apply = forward(job.model)

    def evaluate(params: Params, rows: jax.Array) -> jax.Array:
        return jax.lax.map(lambda part: mean_loss(apply, params, part, None), rows).mean()

    return evaluate
