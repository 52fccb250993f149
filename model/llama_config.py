"""The shape of a Llama-style decoder, and what follows from it by arithmetic.

Must not import JAX, so that the control plane can price a run that it never trains.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.shapes import Dtype, Fields, HeadDim, Heads, Layers, Remat, Size, Theta, dropped, unless


class LlamaConfig(BaseModel):
    """Llama-style decoder: RMSNorm before each block, RoPE, SwiGLU, grouped-query attention.

    `head_dim` defaults to `hidden / heads` and `kv_heads` to `heads` (no grouping). `rope_pairs`
    says which two numbers of a head turn together: i and i + head_dim / 2, or neighbours.
    `ntk_factor` stretches the context that positions were trained for by raising `rope_theta`.
    `dropout` is applied to each block's output while training. Weights are kept in float32; `dtype`
    is the type of the matrix products. `init_std` draws every matrix from one normal distribution;
    without it each follows from the number of its inputs. `loss_chunk` bounds how many positions
    have their logits at once. Source: Touvron et al. 2023, arXiv:2302.13971.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["llama"] = "llama"
    vocab_size: Size
    context: Size
    layers: Layers
    hidden: Size
    heads: Heads
    kv_heads: Heads
    head_dim: HeadDim
    ffn: Size
    rope_theta: Theta = 10_000.0
    rope_pairs: Annotated[
        Literal["half-split", "interleaved"], Field(exclude_if=unless("half-split"))
    ] = "half-split"
    ntk_factor: Annotated[float, Field(ge=1, le=1024, exclude_if=unless(1.0))] = 1.0
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    tied: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    init_std: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None, Field(exclude_if=unless(None))
    ] = None
    dtype: Dtype = "bfloat16"
    scan_layers: bool = True
    remat: Annotated[Remat, Field(exclude_if=unless("none"))] = "none"
    loss_chunk: Annotated[Size | None, Field(exclude_if=unless(None))] = None

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, given: object) -> object:
        if not isinstance(given, dict):
            return cast(object, given)
        fields: Fields = dict(cast(Fields, given))
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
        if self.ntk_factor != 1 and self.head_dim == 2:
            raise ValueError("ntk_factor needs a head_dim of 4 or more")
        if self.loss_chunk is not None and self.context % self.loss_chunk:
            raise ValueError(
                f"loss_chunk {self.loss_chunk} does not divide the context of {self.context}"
            )
        return self

    @staticmethod
    def rederive(preset: Fields, given: Fields) -> None:
        """Takes out of a preset's fields what a change of others makes void."""
        if "hidden" in given or "heads" in given:
            dropped(preset, given, ["head_dim"])
        if "heads" in given:
            dropped(preset, given, ["kv_heads"])

    @property
    def rows(self) -> int:
        """Rows of the embedding and of the head."""
        return self.vocab_size

    @property
    def rotary_base(self) -> float:
        """`rope_theta`, raised so that the slowest pair turns as far in `ntk_factor` times as long.

        Source: "NTK-aware scaled RoPE", bloc97, 2023.
        """
        return self.rope_theta * self.ntk_factor ** (self.head_dim / max(self.head_dim - 2, 1))

    @property
    def parameters(self) -> int:
        """The exact number of trainable parameters."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        block = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        embeddings = self.vocab_size * self.hidden * (1 if self.tied else 2)
        return self.layers * block + self.hidden + embeddings

    @property
    def matrix_parameters(self) -> int:
        """Of the parameters, those of the blocks' matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def flops_per_token(self) -> int:
        """Forward and backward matrix-product FLOPs per trained token, attention included.

        6 per weight that takes part in a product plus 12·layers·heads·head_dim·context for the
        attention scores (Chowdhery et al. 2022, appendix B; without the causal halving).
        """
        embedding = 0 if self.tied else self.vocab_size * self.hidden
        weights = self.parameters - embedding
        return 6 * weights + 12 * self.layers * self.heads * self.head_dim * self.context

    @property
    def block_numbers_per_token(self) -> int:
        """About how many numbers one block keeps of a token for the backward pass, scores aside."""
        heads = self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return 4 * self.hidden + heads + 3 * self.ffn

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read it."""
        later = (self.rope_pairs, self.ntk_factor, self.init_std, self.remat, self.loss_chunk)
        return 2 if later == ("half-split", 1.0, None, "none", None) else 3
