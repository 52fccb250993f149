"""Frozen model configurations and their named presets.

Owns the shapes of every architecture and what follows from them by arithmetic: exact parameter
counts and training FLOPs per token. Must not import JAX, so that the control plane can price a
run that it never trains.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Size = Annotated[int, Field(gt=0, le=1 << 24)]


class LlamaConfig(BaseModel):
    """Llama-style decoder: RMSNorm before each block, RoPE, SwiGLU, grouped-query attention.

    `head_dim` defaults to `hidden / heads` and `kv_heads` to `heads` (no grouping). `dropout` is
    applied to each block's output while training. Weights are kept in float32; `dtype` is the
    type of the matrix products. Source: Touvron et al. 2023, arXiv:2302.13971.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["llama"] = "llama"
    vocab_size: Size
    context: Size
    layers: Annotated[int, Field(gt=0, le=1024)]
    hidden: Size
    heads: Annotated[int, Field(gt=0, le=1024)]
    kv_heads: Annotated[int, Field(gt=0, le=1024)]
    head_dim: Annotated[int, Field(gt=0, le=4096)]
    ffn: Size
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10_000.0
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    tied: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    scan_layers: bool = True

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: object) -> object:
        """Starts from `preset` where one is named, then derives the two optional head fields."""
        if not isinstance(given, dict):
            return given
        fields: dict[str, object] = dict(given)  # pyright: ignore[reportUnknownArgumentType]
        name = fields.pop("preset", None)
        if name is not None:
            if not isinstance(name, str) or name not in MODEL_PRESETS:
                known = ", ".join(MODEL_PRESETS)
                raise ValueError(f"there is no model preset {name!r}; the presets are: {known}")
            base = MODEL_PRESETS[name].model_dump()
            reshaped = "hidden" in fields or "heads" in fields
            if reshaped and "head_dim" not in fields:
                del base["head_dim"]
            if "heads" in fields and "kv_heads" not in fields:
                del base["kv_heads"]
            fields = base | fields
        hidden, heads = fields.get("hidden"), fields.get("heads")
        fields.setdefault("kv_heads", heads)
        if "head_dim" not in fields and isinstance(hidden, int) and isinstance(heads, int):
            if heads > 0 and hidden % heads:
                raise ValueError(
                    f"{hidden} hidden units do not divide into {heads} heads;"
                    " choose heads that divide hidden, or give head_dim"
                )
            fields["head_dim"] = hidden // heads if heads > 0 else None
        return fields

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads do not divide into {self.kv_heads} kv_heads;"
                " choose kv_heads that divide heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; RoPE rotates pairs, so make it even")
        return self

    @property
    def parameters(self) -> int:
        """The exact number of trainable parameters."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        block = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        embeddings = self.vocab_size * self.hidden * (1 if self.tied else 2)
        return self.layers * block + self.hidden + embeddings

    @property
    def flops_per_token(self) -> int:
        """Forward and backward matrix-product FLOPs per trained token, attention included.

        6 per weight that takes part in a product plus 12·layers·heads·head_dim·context for the
        attention scores (Chowdhery et al. 2022, appendix B; without the causal halving).
        """
        embedding = 0 if self.tied else self.vocab_size * self.hidden
        weights = self.parameters - embedding
        return 6 * weights + 12 * self.layers * self.heads * self.head_dim * self.context


ModelConfig = LlamaConfig

MODEL_PRESETS: dict[str, ModelConfig] = {}
MODEL_PRESETS["demo-1m"] = LlamaConfig(
    vocab_size=257,
    context=128,
    layers=4,
    hidden=128,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=512,
    tied=True,
    dropout=0.05,
)
MODEL_PRESETS["bench-51m"] = LlamaConfig(
    vocab_size=24_576,
    context=256,
    layers=8,
    hidden=512,
    heads=8,
    kv_heads=8,
    head_dim=64,
    ffn=1408,
    tied=False,
)
