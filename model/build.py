"""From a configuration to pure functions over plain dictionaries of weights.

Owns the boundary between Flax modules and the trainer, which sees only names and arrays: what a
checkpoint holds must not depend on how a module library nests its variables.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from model.config import ModelConfig
from model.llama import Llama

Params = dict[str, "jax.Array | Params"]
Forward = Callable[[Params, jax.Array, jax.Array | None], jax.Array]


def initial_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 weights by name, nested as the model is. Pure; may be compiled."""
    return nnx.to_pure_dict(nnx.state(Llama(config, key), nnx.Param))


def forward(config: ModelConfig) -> Forward:
    """The function (params, tokens int32 [b, t], dropout keys [b] or None) -> logits.

    Logits are float32 [b, t, vocab].
    """
    abstract = nnx.eval_shape(lambda: Llama(config, jax.random.key(0)))
    graph, shapes = nnx.split(abstract, nnx.Param)

    def apply(params: Params, tokens: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        weights = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(weights, params)
        return nnx.merge(graph, weights)(tokens, dropout_keys)

    return apply
