"""The optimizer as the spec words it, put together from optax's parts and Muon's."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model.build import Params
from model.matrices import matrix_axes
from worker.digest import dotted
from worker.ends import Invalid
from worker.muon import apply_rate, scale_by_muon
from worker.protocol import AnyOptimizer, GroupSpec, MuonSpec, OptimizerSpec
from worker.schedules import learning_rate, momentum, weight_decay

MATRICES, REST = "matrices", "rest"
Groups = dict[Hashable, optax.GradientTransformation]


class AverageState(NamedTuple):
    average: optax.Params


def matrices(params: Params) -> Params:
    """True where weight decay applies: everywhere but on the scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) != "scale", params
    )


def optimizer(spec: AnyOptimizer, steps: int) -> optax.GradientTransformation:
    """Raises Invalid from its `init` for a group that no weight belongs to."""
    return optax.chain(*_parts(spec, steps))


def evaluated(spec: AnyOptimizer, params: Params, state: optax.OptState) -> Params:
    """The weights that an evaluation takes: their moving average, where one is kept."""
    if spec.average is None:
        return params
    return state[-1].average  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]


def _parts(spec: AnyOptimizer, steps: int) -> Iterator[optax.GradientTransformation]:
    if spec.clip_norm is not None:
        yield optax.clip_by_global_norm(spec.clip_norm)
    match spec:
        case OptimizerSpec(groups=()):
            yield _adamw(spec, steps)
        case OptimizerSpec():
            groups: Groups = {REST: _adamw(spec, steps), **_by_group(spec, spec, steps)}
            yield optax.partition(groups, _labels(spec))
        case MuonSpec():
            rest = OptimizerSpec(
                learning_rate=spec.adam_learning_rate,
                min_learning_rate=0.0,
                b1=spec.adam_b1,
                b2=spec.adam_b2,
                eps=spec.adam_eps,
                weight_decay=spec.adam_weight_decay,
            )
            muon = optax.chain(
                scale_by_muon(momentum(spec, steps), spec.b2),
                apply_rate(learning_rate(spec, steps), weight_decay(spec, steps)),
            )
            others = _group(GroupSpec(match="*"), rest, spec, steps)
            groups = {MATRICES: muon, REST: others, **_by_group(rest, spec, steps)}
            yield optax.partition(groups, _labels(spec))
    if spec.average is not None:
        yield _averaged(spec.average)


def _adamw(spec: OptimizerSpec, steps: int) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate(spec, steps),
        b1=spec.b1,
        b2=spec.b2,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        mask=matrices,
    )


def _by_group(
    base: OptimizerSpec, scheduled: AnyOptimizer, steps: int
) -> dict[str, optax.GradientTransformation]:
    groups = enumerate(scheduled.groups)
    return {str(index): _group(group, base, scheduled, steps) for index, group in groups}


def _group(
    group: GroupSpec, base: OptimizerSpec, scheduled: AnyOptimizer, steps: int
) -> optax.GradientTransformation:
    """AdamW with what the group sets, else what `base` says, on the schedule of `scheduled`."""
    peak = base.learning_rate if group.learning_rate is None else group.learning_rate

    def chosen(given: float | None, otherwise: float) -> float:
        return otherwise if given is None else given

    return optax.adamw(
        learning_rate(scheduled, steps, peak),
        b1=chosen(group.b1, base.b1),
        b2=chosen(group.b2, base.b2),
        eps=chosen(group.eps, base.eps),
        weight_decay=chosen(group.weight_decay, base.weight_decay),
        mask=matrices,
    )


def _labels(spec: AnyOptimizer) -> Callable[[Any], Any]:
    """Which part each weight belongs to: the first group that matches, else Muon's or the rest."""
    takes_matrices = isinstance(spec, MuonSpec)

    def of(name: str) -> str:
        for index, group in enumerate(spec.groups):
            if fnmatchcase(name, group.match):
                return str(index)
        return MATRICES if takes_matrices and matrix_axes(name) is not None else REST

    def labels(params: Any) -> Any:
        made = jax.tree_util.tree_map_with_path(lambda path, _: of(dotted(path)), params)
        _refuse_empty(spec.groups, set(jax.tree.leaves(made)), params)
        return made

    return labels


def _refuse_empty(groups: tuple[GroupSpec, ...], used: set[str], params: Any) -> None:
    for index, group in enumerate(groups):
        if str(index) not in used:
            paths, _ = jax.tree_util.tree_flatten_with_path(params)
            names = ", ".join(dotted(path) for path, _ in paths)
            raise Invalid(
                f"no weight is left for the group {group.match!r}; the weights are: {names}",
                field=f"/optimizer/groups/{index}/match",
                hint="Change the pattern, or put the group before those that take its weights.",
            )


def _averaged(decay: float) -> optax.GradientTransformation:
    """Changes no update; keeps the moving average of the weights as they are after it."""

    def init(params: optax.Params) -> AverageState:
        return AverageState(jax.tree.map(jnp.copy, params))

    def update(
        updates: optax.Updates, state: AverageState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AverageState]:
        def moved(old: jax.Array, weight: jax.Array, change: jax.Array) -> jax.Array:
            return decay * old + (1 - decay) * (weight + change)

        return updates, AverageState(jax.tree.map(moved, state.average, params, updates))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
