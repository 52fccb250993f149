"""The nanochat family's dial: a depth gives the batch, the learning rates and the weight decay.

Anchored where the reference system was trained, at depth 12. With the depth the tokens grow as the
weights that take part in products; the batch as tokens^0.383, in powers of two; learning rates as
the root of the batch, those of embeddings and head besides as 1 / sqrt(width); weight decay as the
root of the batch over the tokens. Source: nanochat's `base_train`. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config import NanochatConfig
from model.presets import FLAXCHAT_D12
from worker.protocol import GroupSpec, MuonSpec

REFERENCE_TOKENS = 2_000_000_000
REFERENCE_BATCH = 131_072  # tokens
BATCH_EXPONENT = 0.383
WEIGHT_DECAY = 0.28


@dataclass(frozen=True)
class Recipe:
    sequences: int
    steps: int
    optimizer: MuonSpec


def recipe(model: NanochatConfig) -> Recipe:
    tokens = REFERENCE_TOKENS * _products(model) / _products(FLAXCHAT_D12)
    ideal = REFERENCE_BATCH * (tokens / REFERENCE_TOKENS) ** BATCH_EXPONENT
    batch = max(model.context, 1 << round(math.log2(ideal)))
    sequences = batch // model.context
    faster = (batch / REFERENCE_BATCH) ** 0.5
    decay = WEIGHT_DECAY * faster * REFERENCE_TOKENS / tokens
    steps = math.ceil(tokens / (sequences * model.context))
    return Recipe(sequences, steps, optimizer(model, faster, decay))


def optimizer(model: NanochatConfig, faster: float, weight_decay: float) -> MuonSpec:
    """`faster` multiplies every learning rate."""
    thinner = (model.hidden / FLAXCHAT_D12.hidden) ** -0.5
    wide = faster * thinner
    head = GroupSpec(match="head", learning_rate=0.008 * wide, b2=0.96, weight_decay=0.01)
    groups = (
        *(() if model.tied else (head,)),
        GroupSpec(match="embedding", learning_rate=0.3 * wide, b2=0.995, weight_decay=0.001),
        GroupSpec(match="*.values", learning_rate=0.15 * wide, b2=0.995, weight_decay=0.01),
        GroupSpec(match="resid_lambdas", learning_rate=0.005 * faster, weight_decay=0.05),
        GroupSpec(match="x0_lambdas", learning_rate=0.5 * faster, b1=0.96),
        GroupSpec(match="smear_*", learning_rate=0.2 * faster),
        GroupSpec(match="backout_lambda", learning_rate=0.2 * faster),
    )
    rate = 0.02 * faster
    return MuonSpec(
        learning_rate=rate,
        min_learning_rate=0.05 * rate,
        weight_decay=weight_decay,
        weight_decay_schedule="cosine",
        groups=groups,
    )


def _products(model: NanochatConfig) -> int:
    return model.matrix_parameters + model.rows * model.hidden
