"""The Llama-style decoder.

What it chooses:
- RMSNorm before each block and before the head; no biases anywhere
- rotary positions on queries and keys, half-split or interleaved pairs, the base stretched for a
  longer context if asked (`ntk_factor`)
- grouped-query attention; SwiGLU feed-forward
- dropout on what each block adds to the residual stream, and nowhere else
- float32 weights, products in `dtype`; norms, rotation, softmax and loss in float32
- tied: the head is the embedding; untied: a matrix of its own
- one stacked block run by `lax.scan` (`scan_layers`), or a list of blocks; equal weights either way
- what a block keeps for its backward pass is up to `remat`

Where weights begin: norms at one, all else normal(`init_std`). Without one, the embedding at
normal(0.02); the head at normal(min(0.02, 0.5 / sqrt(hidden))), so that the first loss is close to
ln(vocab_size); matrices of a block at normal(1 / sqrt(inputs)), those that write to the residual
stream divided by sqrt(2 · layers) besides.
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
    Tables,
    compute_dtype,
    dropout,
    forgetful,
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
        tables: Tables,
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
        std = config.init_std or 0.02
        self.embedding = normal(embed_key, (config.vocab_size, config.hidden), std)
        keys = jax.random.split(blocks_key, config.layers)
        if config.scan_layers:
            self.blocks = nnx.vmap(lambda one: Block(config, one))(keys)
        else:
            self.blocks = nnx.List([Block(config, one) for one in keys])
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        if not config.tied:
            std = config.init_std or min(0.02, 0.5 * config.hidden**-0.5)
            self.head = normal(head_key, (config.vocab_size, config.hidden), std)

    def __call__(self, tokens: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """tokens int32 [b, t] -> logits float32 [b, t, vocab]; drops only when given keys [b]."""
        return self.logits(self.encode(tokens, dropout_keys))

    def encode(self, tokens: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """tokens int32 [b, t] -> what the head reads [b, t, d]."""
        x = jnp.take(self.embedding[...].astype(compute_dtype(self.config)), tokens, axis=0)
        return self.norm(self._through_blocks(x, dropout_keys))

    def logits(self, x: jax.Array) -> jax.Array:
        """x [b, t, d] -> float32 [b, t, vocab]."""
        head = self.embedding if self.config.tied else self.head
        return jnp.einsum("btd,vd->btv", x, head[...].astype(x.dtype)).astype(jnp.float32)

    def _through_blocks(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        config = self.config
        tables = rotary_tables(x.shape[1], config.head_dim, config.rotary_base)
        keys = None if dropout_keys is None else split_each(dropout_keys, config.layers)

        def step(graph: nnx.GraphDef[Block]):
            def one(x: jax.Array, layer: tuple[nnx.State, jax.Array | None]):
                weights, key = layer
                return nnx.merge(graph, weights)(x, tables, key), None

            return forgetful(one, config.remat)

        if not isinstance(self.blocks, nnx.List):
            graph, stacked = nnx.split(self.blocks)
            return jax.lax.scan(step(graph), x, (stacked, keys))[0]
        for index, block in enumerate(self.blocks):
            graph, weights = nnx.split(block)
            x, _ = step(graph)(x, (weights, None if keys is None else keys[index]))
        return x
