"""The step, the eval and the first state, compiled for one mesh with every layout pinned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.build import Params
from worker.mesh import Placer, state_shardings
from worker.protocol import JobSpec
from worker.step import (
    SIGNALS,
    TrainState,
    TrainStep,
    eval_step,
    initial_state,
    train_step,
    vote_step,
)

Vote = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Compiled:
    """`step` overwrites the state it is given."""

    step: TrainStep
    evaluate: Callable[[Params, jax.Array], jax.Array]


def abstract_state(job: JobSpec, mesh: Mesh) -> TrainState:
    """Shapes, types and layout of the state, with nothing allocated."""
    shapes = jax.eval_shape(functools.partial(initial_state, job, 0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def first_state(job: JobSpec, abstract: TrainState, first_batch: int) -> TrainState:
    """The state before the first update, made where it will lie.

    It runs once, so it is compiled quickly rather than well.
    """
    begin = functools.partial(initial_state, job, first_batch)
    quickly = {"xla_backend_optimization_level": 0}
    return jax.jit(begin, out_shardings=_layout(abstract), compiler_options=quickly)()


def compile_steps(job: JobSpec, mesh: Mesh, abstract: TrainState, placer: Placer) -> Compiled:
    """Compiles both before the first step, so that no step's time hides a compilation.

    Layouts are pinned going in and coming out: left free, they drift and compile again.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = _layout(abstract)
    shape = (job.batch.microbatches, job.batch.sequences // job.batch.microbatches)
    rows = jax.ShapeDtypeStruct((*shape, job.model.context + 1), jnp.int32, sharding=placer.rows)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    signals = jax.ShapeDtypeStruct((mesh.size, SIGNALS), jnp.int32, sharding=placer.each)
    step = jax.jit(
        train_step(job, mesh),
        in_shardings=(state, placer.rows, everywhere, placer.each),
        out_shardings=(state, everywhere),
        donate_argnums=0,
    )
    evaluate = jax.jit(
        eval_step(job), in_shardings=(state.params, placer.rows), out_shardings=everywhere
    )
    # optax's decays and the backward pass of jax's own attention mix types on purpose.
    with jax.numpy_dtype_promotion("standard"):
        return Compiled(
            step.lower(abstract, rows, scalar, signals).compile(),
            evaluate.lower(abstract.params, rows).compile(),
        )


def compile_vote(mesh: Mesh, placer: Placer) -> Vote:
    """For a gang to agree where it takes no step: every process must call it at the same place."""
    signals = jax.ShapeDtypeStruct((mesh.size, SIGNALS), jnp.int32, sharding=placer.each)
    everywhere = NamedSharding(mesh, PartitionSpec())
    vote = jax.jit(vote_step(mesh), in_shardings=placer.each, out_shardings=everywhere)
    return vote.lower(signals).compile()


def _layout(abstract: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
