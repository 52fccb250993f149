"""The shape of a nanochat-style decoder: one dial, its depth, gives the rest.

Must not import JAX, so that the control plane can price a run that it never trains.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.shapes import Dtype, Fields, Heads, Layers, Remat, Size, Theta, dropped

WIDTH_PER_LAYER = 64
HEAD_WIDTH = 128
ROWS_MULTIPLE = 64  # of the embedding, so that its products fill whole tiles
SHORT_MULTIPLE = 128  # of the short window, so that it covers whole tiles
GATE_CHANNELS = 12  # of the block's input that gate its value embedding
SMEAR_CHANNELS = 24  # of a token's embedding that gate how much of the one before it takes in


class NanochatConfig(BaseModel):
    """nanochat-style decoder; `model.nanochat` lists what it is made of.

    `layers` is the dial: `hidden` defaults to 64 a layer rounded up to whole heads of 128, `heads`
    to `hidden / 128`, `kv_heads` to `heads`. `window_pattern` is repeated over the layers, S for a
    short window and L for the whole context; the last layer always sees the whole. Weights are kept
    in float32; `dtype` is the type of the matrix products. `loss_chunk` bounds how many positions
    have their logits at once. Source: Karpathy 2025, github.com/karpathy/nanochat.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["nanochat"] = "nanochat"
    vocab_size: Size = 32_768
    context: Size = 2048
    layers: Layers
    hidden: Size
    heads: Heads
    kv_heads: Heads
    activation: Literal["relu2", "gelu"] = "relu2"
    tied: bool = False
    window_pattern: Annotated[str, Field(pattern=r"^[SL]{1,64}$")] = "SSSL"
    rope_theta: Theta = 100_000.0
    logit_cap: Annotated[float, Field(gt=0, le=1e6)] = 15.0
    dtype: Dtype = "bfloat16"
    scan_layers: bool = True
    remat: Remat = "dots"
    loss_chunk: Size | None = None

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, given: object) -> object:
        if not isinstance(given, dict):
            return cast(object, given)
        fields: Fields = dict(cast(Fields, given))
        layers = fields.get("layers")
        if "hidden" not in fields and isinstance(layers, int):
            fields["hidden"] = _up_to(layers * WIDTH_PER_LAYER, HEAD_WIDTH)
        hidden = fields.get("hidden")
        if "heads" not in fields and isinstance(hidden, int):
            if hidden % HEAD_WIDTH:
                raise ValueError(
                    f"{hidden} hidden units are no multiple of {HEAD_WIDTH}, the width of a head;"
                    " give heads"
                )
            fields["heads"] = hidden // HEAD_WIDTH
        if "heads" in fields:
            fields.setdefault("kv_heads", fields["heads"])
        return fields

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(
                f"{self.hidden} hidden units do not divide into {self.heads} heads;"
                " choose heads that divide hidden"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads do not divide into {self.kv_heads} kv_heads;"
                " choose kv_heads that divide heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"hidden / heads is {self.head_dim}; RoPE rotates pairs, so make it even"
            )
        if self.hidden < SMEAR_CHANNELS:
            raise ValueError(f"hidden is {self.hidden}; {SMEAR_CHANNELS} is the least")
        if self.loss_chunk is not None and self.context % self.loss_chunk:
            raise ValueError(
                f"loss_chunk {self.loss_chunk} does not divide the context of {self.context}"
            )
        return self

    @staticmethod
    def rederive(preset: Fields, given: Fields) -> None:
        """Takes out of a preset's fields what a change of others makes void."""
        if "layers" in given:
            dropped(preset, given, ["hidden"])
        if "layers" in given or "hidden" in given:
            dropped(preset, given, ["heads"])
        if given.keys() & {"layers", "hidden", "heads"}:
            dropped(preset, given, ["kv_heads"])

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def ffn(self) -> int:
        return 4 * self.hidden

    @property
    def rows(self) -> int:
        """Rows of the embeddings and of the head; no token has those past the vocabulary."""
        return _up_to(self.vocab_size, ROWS_MULTIPLE)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer: how many earlier tokens a token sees beside itself, or None for all."""
        short = _up_to(-(-self.context // 4), SHORT_MULTIPLE)
        wide = [
            self.window_pattern[i % len(self.window_pattern)] == "L" for i in range(self.layers)
        ]
        wide[-1] = True
        return tuple(None if whole or short >= self.context else short for whole in wide)

    @property
    def valued(self) -> tuple[bool, ...]:
        """Which layers have value embeddings: every second one, the last included."""
        return tuple(index % 2 == (self.layers - 1) % 2 for index in range(self.layers))

    @property
    def matrix_parameters(self) -> int:
        """Of the parameters, those of the blocks' matrices, gates included."""
        d, kv = self.hidden, self.kv_heads * self.head_dim
        gates = sum(self.valued) * GATE_CHANNELS * self.kv_heads
        return self.layers * (2 * d * d + 2 * d * kv + 2 * d * self.ffn) + gates

    @property
    def parameters(self) -> int:
        """The exact number of trainable parameters."""
        values = sum(self.valued) * self.rows * self.kv_heads * self.head_dim
        embeddings = self.rows * self.hidden * (1 if self.tied else 2)
        scalars = 2 * self.layers + SMEAR_CHANNELS + 2
        return self.matrix_parameters + embeddings + values + scalars

    @property
    def flops_per_token(self) -> int:
        """Forward and backward matrix-product FLOPs per trained token, attention included.

        6 per weight that takes part in a product plus 12·heads·head_dim for each token that is
        seen (Chowdhery et al. 2022, appendix B; without the causal halving).
        """
        weights = self.matrix_parameters + self.rows * self.hidden + SMEAR_CHANNELS
        seen = sum(self.context if window is None else window for window in self.windows)
        return 6 * weights + 12 * self.hidden * seen

    @property
    def block_numbers_per_token(self) -> int:
        """About how many numbers one block keeps of a token for the backward pass, scores aside."""
        heads = self.head_dim * (3 * self.heads + 3 * self.kv_heads)
        return 5 * self.hidden + heads + 2 * self.ffn

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read it."""
        return 3


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
