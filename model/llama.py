"""The Llama-style decoder.

What it chooses:
- RMSNorm before each block and before the head; no biases anywhere
- rotary positions on queries and keys, half-split pairs
- grouped-query attention; SwiGLU feed-forward
- dropout on what each block adds to the residual stream, and nowhere else
- float32 weights, products in `dtype`; norms, rotation, softmax and loss in float32
- tied: the head is the embedding; untied: a matrix of its own
- one stacked block run by `lax.scan` (`scan_layers`), or a list of blocks; equal weights either way

Where weights begin: embedding normal(0.02); head normal(min(0.02, 0.5 / sqrt(hidden))), so that
the first loss is close to ln(vocab_size); matrices of a block normal(1 / sqrt(inputs)), those that
write to the residual stream divided by sqrt(2 · layers) besides; norms at one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import LlamaConfig
from model.layers import (
    Attention,
    RMSNorm,
    SwiGLU,
    compute_dtype,
    dropout,
    normal,
    rotary_tables,
    split_each,
)


class Block(nnx.Module):
    def __init__(self, config: LlamaConfig, key: jax.Array) -> None:
        attention_key, feed_key = jax.random.split(key)
        self.attention_norm = RMSNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config, attention_key)
        self.feed_norm = RMSNorm(config.hidden, config.norm_eps)
        self.feed = SwiGLU(config, feed_key)
        self.rate = config.dropout

    def __call__(
        self,
        x: jax.Array,
        tables: tuple[jax.Array, jax.Array],
        dropout_keys: jax.Array | None,
    ) -> jax.Array:
        """x [b, t, d] -> [b, t, d]."""
        first, second = (None, None) if dropout_keys is None else split_each(dropout_keys, 2)
        x = x + dropout(self.attention(self.attention_norm(x), tables), self.rate, first)
        return x + dropout(self.feed(self.feed_norm(x)), self.rate, second)


class Llama(nnx.Module):
    def __init__(self, config: LlamaConfig, key: jax.Array) -> None:
        embed_key, head_key, blocks_key = jax.random.split(key, 3)
        self.config = config
        self.embedding = normal(embed_key, (config.vocab_size, config.hidden), 0.02)
        keys = jax.random.split(blocks_key, config.layers)
        if config.scan_layers:
            self.blocks = nnx.vmap(lambda one: Block(config, one))(keys)
        else:
            self.blocks = nnx.List([Block(config, one) for one in keys])
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        if not config.tied:
            std = min(0.02, 0.5 * config.hidden**-0.5)
            self.head = normal(head_key, (config.vocab_size, config.hidden), std)

    def __call__(self, tokens: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """tokens int32 [b, t] -> logits float32 [b, t, vocab]; drops only when given keys [b]."""
        config = self.config
        dtype = compute_dtype(config)
        x = jnp.take(self.embedding[...].astype(dtype), tokens, axis=0)
        x = self._through_blocks(x, dropout_keys)
        head = self.embedding if config.tied else self.head
        logits = jnp.einsum("btd,vd->btv", self.norm(x), head[...].astype(dtype))
        return logits.astype(jnp.float32)

    def _through_blocks(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        config = self.config
        tables = rotary_tables(x.shape[1], config.head_dim, config.rope_theta)
        keys = None if dropout_keys is None else split_each(dropout_keys, config.layers)
        if not isinstance(self.blocks, nnx.List):
            graph, stacked = nnx.split(self.blocks)

            def one(x: jax.Array, layer: tuple[nnx.State, jax.Array | None]):
                weights, key = layer
                return nnx.merge(graph, weights)(x, tables, key), None

            return jax.lax.scan(one, x, (stacked, keys))[0]
        for index, block in enumerate(self.blocks):
            x = block(x, tables, None if keys is None else keys[index])
        return x
