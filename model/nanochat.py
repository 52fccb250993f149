"""The nanochat-style decoder.

What it chooses:
- RMSNorm without weights: after the embedding, before each part of a block, before the head; no
  biases anywhere
- rotary positions, half-split pairs, base 100,000; then queries and keys normed and made 1.2 times
  as long, which sharpens attention
- grouped-query attention; a pattern of short and whole windows over the layers, the last one whole
- value embeddings: in every second layer, the last included, each token adds a vector of its own to
  its values, under a gate of 3 · sigmoid(12 channels) for each key head
- a feed-forward four times as wide with squared ReLU, or GELU
- before each layer the residual stream is scaled (`resid_lambdas`) and takes in the first state
  again (`x0_lambdas`)
- smear: each token takes in the one before it, by a gate of 24 channels times `smear_lambda`
- backout: of the last state, `backout_lambda` times the state after layer L // 2 is taken away
- logits held within ±15 by 15 · tanh(x / 15); the rows past the vocabulary are cut off
- tied: the head is the embedding; untied: a matrix of its own
- float32 weights, products in `dtype`; norms, rotation, softmax and loss in float32
- the shortest group of layers that repeats is stacked and run by `lax.scan` (`scan_layers`), or
  there is a list of layers; equal weights either way
- what a block keeps for its backward pass is up to `remat`

Where weights begin, with s = sqrt(3 / hidden): embedding normal(0.8), head normal(0.001), queries,
keys, values and value embeddings uniform(±s), the feed-forward's first matrix uniform(±0.4 · s),
gates of values uniform(0, 0.02), what writes to the residual stream 0, so that each block begins as
the identity; `resid_lambdas` fall from 1.15 to 1.05 over the depth, `x0_lambdas` from 0.20 to 0.05;
`smear_lambda` is 0, `backout_lambda` 0.2; the gate of the smear normal(1 / sqrt(24)).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import attend
from model.layers import Tables, compute_dtype, forgetful, normal, rotary_tables, rotate, uniform
from model.nanochat_config import GATE_CHANNELS, SMEAR_CHANNELS, NanochatConfig

SHARPER = 1.2
NORM_EPS = 1e-6


def norm(x: jax.Array) -> jax.Array:
    """x over its root mean square; in float32."""
    wide = x.astype(jnp.float32)
    power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(power + NORM_EPS)).astype(x.dtype)


def period(config: NanochatConfig) -> int:
    """How many layers in a row make a group that repeats: windows and value embeddings alike."""
    kinds = tuple(zip(config.windows, config.valued, strict=True))
    fitting = (n for n in range(1, config.layers + 1) if config.layers % n == 0)
    return next(n for n in fitting if kinds == kinds[:n] * (config.layers // n))


class Attention(nnx.Module):
    def __init__(self, config: NanochatConfig, valued: bool, key: jax.Array) -> None:
        d, n, k, h = config.hidden, config.heads, config.kv_heads, config.head_dim
        keys = jax.random.split(key, 5)
        bound = (3 / d) ** 0.5
        self.query = uniform(keys[0], (d, n, h), -bound, bound)
        self.key = uniform(keys[1], (d, k, h), -bound, bound)
        self.value = uniform(keys[2], (d, k, h), -bound, bound)
        self.out = nnx.Param(jnp.zeros((n, h, d), jnp.float32))
        if valued:
            self.gate = uniform(keys[3], (GATE_CHANNELS, k), 0.0, 0.02)
            self.values = uniform(keys[4], (config.rows, k, h), -bound, bound)

    def __call__(
        self, x: jax.Array, tokens: jax.Array, tables: Tables, window: int | None
    ) -> jax.Array:
        dtype = x.dtype
        query = jnp.einsum("btd,dnh->btnh", x, self.query[...].astype(dtype))
        key = jnp.einsum("btd,dkh->btkh", x, self.key[...].astype(dtype))
        value = jnp.einsum("btd,dkh->btkh", x, self.value[...].astype(dtype))
        if hasattr(self, "values"):
            own = jnp.take(self.values[...].astype(dtype), tokens, axis=0)
            open_by = jnp.einsum(
                "btc,ck->btk", x[..., :GATE_CHANNELS], self.gate[...].astype(dtype)
            )
            value = value + 3 * jax.nn.sigmoid(open_by)[..., None] * own
        query, key = (norm(rotate(each, tables)) * SHARPER for each in (query, key))
        mixed = attend(query, key, value, window)
        return jnp.einsum("btnh,nhd->btd", mixed, self.out[...].astype(dtype))


class FeedForward(nnx.Module):
    def __init__(self, config: NanochatConfig, key: jax.Array) -> None:
        d, f = config.hidden, config.ffn
        bound = 0.4 * (3 / d) ** 0.5
        self.up = uniform(key, (d, f), -bound, bound)
        self.down = nnx.Param(jnp.zeros((f, d), jnp.float32))
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x_up = jnp.einsum("btd,df->btf", x, self.up[...].astype(x.dtype))
        wide = jnp.square(jax.nn.relu(x_up)) if self.activation == "relu2" else jax.nn.gelu(x_up)
        return jnp.einsum("btf,fd->btd", wide, self.down[...].astype(x.dtype))


class Block(nnx.Module):
    def __init__(self, config: NanochatConfig, valued: bool, key: jax.Array) -> None:
        attention_key, feed_key = jax.random.split(key)
        self.attention = Attention(config, valued, attention_key)
        self.feed = FeedForward(config, feed_key)

    def __call__(
        self, x: jax.Array, tokens: jax.Array, tables: Tables, window: int | None
    ) -> jax.Array:
        """x [b, t, d] -> [b, t, d]."""
        x = x + self.attention(norm(x), tokens, tables, window)
        return x + self.feed(norm(x))


class Nanochat(nnx.Module):
    def __init__(self, config: NanochatConfig, key: jax.Array) -> None:
        embed_key, head_key, smear_key, blocks_key = jax.random.split(key, 4)
        self.config = config
        shape = (config.rows, config.hidden)
        self.embedding = normal(embed_key, shape, 0.8)
        if not config.tied:
            self.head = normal(head_key, shape, 0.001)
        self.resid_lambdas = nnx.Param(jnp.linspace(1.15, 1.05, config.layers, dtype=jnp.float32))
        self.x0_lambdas = nnx.Param(jnp.linspace(0.20, 0.05, config.layers, dtype=jnp.float32))
        self.smear_gate = normal(smear_key, (SMEAR_CHANNELS,), SMEAR_CHANNELS**-0.5)
        self.smear_lambda = nnx.Param(jnp.zeros((1,), jnp.float32))
        self.backout_lambda = nnx.Param(jnp.full((1,), 0.2, jnp.float32))
        keys, valued = jax.random.split(blocks_key, config.layers), config.valued

        def stacked(has: bool, keys: jax.Array) -> Block:
            return nnx.vmap(lambda one: Block(config, has, one))(keys)

        if config.scan_layers:
            many = period(config)
            firsts = enumerate(valued[:many])
            self.groups = nnx.List([stacked(has, keys[first::many]) for first, has in firsts])
        else:
            pairs = zip(valued, keys, strict=True)
            self.blocks = nnx.List([Block(config, has, one) for has, one in pairs])

    def __call__(self, tokens: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """tokens int32 [b, t] -> logits float32 [b, t, vocab]; it has no dropout."""
        return self.logits(self.encode(tokens, dropout_keys))

    def encode(self, tokens: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """tokens int32 [b, t] -> what the head reads [b, t, d]."""
        del dropout_keys
        x = jnp.take(self.embedding[...].astype(compute_dtype(self.config)), tokens, axis=0)
        x = self._smeared(norm(x))
        last, middle = self._through_blocks(x, tokens)
        return norm(last - self.backout_lambda[...].astype(x.dtype) * middle)

    def logits(self, x: jax.Array) -> jax.Array:
        """x [b, t, d] -> float32 [b, t, vocab]."""
        config = self.config
        head = (self.embedding if config.tied else self.head)[: config.vocab_size]
        logits = jnp.einsum("btd,vd->btv", x, head.astype(x.dtype)).astype(jnp.float32)
        return config.logit_cap * jnp.tanh(logits / config.logit_cap)

    def _smeared(self, x: jax.Array) -> jax.Array:
        gate = self.smear_gate[...].astype(x.dtype)
        open_by = jax.nn.sigmoid(jnp.einsum("btc,c->bt", x[:, 1:, :SMEAR_CHANNELS], gate))
        taken = self.smear_lambda[...].astype(x.dtype) * open_by[..., None] * x[:, :-1]
        return jnp.concatenate([x[:, :1], x[:, 1:] + taken], axis=1)

    def _through_blocks(self, x: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The state after the last layer, and that after the layer in the middle."""
        config, first = self.config, x
        tables = rotary_tables(x.shape[1], config.head_dim, config.rope_theta)
        resid, again = (each[...].astype(x.dtype) for each in (self.resid_lambdas, self.x0_lambdas))
        halfway = config.layers // 2

        def layer(graph: nnx.GraphDef[Block], window: int | None):
            def one(x: jax.Array, weights: nnx.State, resid: jax.Array, again: jax.Array):
                x = resid * x + again * first
                return nnx.merge(graph, weights)(x, tokens, tables, window)

            return forgetful(one, config.remat)

        if not config.scan_layers:
            middle = x
            for index, (block, window) in enumerate(zip(self.blocks, config.windows, strict=True)):
                graph, weights = nnx.split(block)
                x = layer(graph, window)(x, weights, resid[index], again[index])
                middle = x if index == halfway else middle
            return x, middle

        graphs, stacked = zip(*(nnx.split(group) for group in self.groups), strict=True)
        many = len(graphs)
        steps = [layer(*each) for each in zip(graphs, config.windows[:many], strict=True)]

        def group(carry: tuple[jax.Array, jax.Array], part):
            (x, middle), (weights, resid, again, index) = carry, part
            for place, step in enumerate(steps):
                x = step(x, weights[place], resid[place], again[place])
                if place == halfway % many:
                    middle = jnp.where(index == halfway // many, x, middle)
            return (x, middle), None

        lambdas = (each.reshape(-1, many) for each in (resid, again))
        parts = (stacked, *lambdas, jnp.arange(config.layers // many))
        return jax.lax.scan(group, (x, x), parts)[0]
