"""From a configuration to pure functions over plain dictionaries of weights.

Owns the boundary between Flax modules and the trainer, which sees only names and arrays: what a
checkpoint holds must not depend on how a module library nests its variables.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from model.config import LlamaConfig, ModelConfig, NanochatConfig
from model.llama import Llama
from model.loss import chunked_losses, losses_of
from model.nanochat import Nanochat

Params = dict[str, "jax.Array | Params"]
Forward = Callable[[Params, jax.Array, jax.Array | None], jax.Array]
Losses = Callable[[Params, jax.Array, jax.Array | None], jax.Array]
Decoder = Llama | Nanochat


def initial_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 weights by name, nested as the model is. Pure; may be compiled."""
    return nnx.to_pure_dict(nnx.state(_decoder(config, key), nnx.Param))


def forward(config: ModelConfig) -> Forward:
    """The function (params, tokens int32 [b, t], dropout keys [b] or None) -> logits.

    Logits are float32 [b, t, vocab].
    """
    with_weights = _with_weights(config)

    def apply(params: Params, tokens: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        return with_weights(params)(tokens, dropout_keys)

    return apply


def losses(config: ModelConfig) -> Losses:
    """The function (params, rows int32 [b, context + 1], dropout keys [b] or None) -> losses.

    Losses are the mean cross-entropy in nats of each row: float32 [b].
    """
    with_weights, chunk = _with_weights(config), config.loss_chunk

    def apply(params: Params, rows: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        model = with_weights(params)
        x = model.encode(rows[:, :-1], dropout_keys)
        if chunk is None:
            return losses_of(model.logits(x), rows[:, 1:]).mean(axis=-1)
        return chunked_losses(model.logits, x, rows[:, 1:], chunk)

    return apply


def _decoder(config: ModelConfig, key: jax.Array) -> Decoder:
    match config:
        case LlamaConfig():
            return Llama(config, key)
        case NanochatConfig():
            return Nanochat(config, key)


def _with_weights(config: ModelConfig) -> Callable[[Params], Decoder]:
    """The model around weights that are handed in, traced or not."""
    abstract = nnx.eval_shape(lambda: _decoder(config, jax.random.key(0)))
    graph, shapes = nnx.split(abstract, nnx.Param)

    def filled(params: Params) -> Decoder:
        weights = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(weights, params)
        return nnx.merge(graph, weights)

    return filled
