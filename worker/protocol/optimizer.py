"""How weights change: AdamW, or Muon for the matrices beside AdamW for the rest.

Part of the spec of a run; no JAX and no IO.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from model.config import ModelConfig
from model.shapes import unless
from worker.protocol.base import Positive, Spec

Schedule = Literal["warmup-cosine", "warmup-constant-warmdown", "constant"]
Share = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AverageDecay = Annotated[float, Field(gt=0, lt=1)]
MOMENT_BYTES = 4  # of one parameter, in float32


class GroupSpec(Spec):
    """What AdamW does otherwise with the weights whose dotted names match a pattern.

    A name is like `blocks.attention.query`; `*` in `match` stands for any part of it. The learning
    rate follows the run's schedule, from a peak of its own. What is not set is as for the others.
    """

    match: Annotated[str, Field(min_length=1, max_length=200)]
    learning_rate: Positive | None = None
    b1: Share | None = None
    b2: Share | None = None
    eps: Positive | None = None
    weight_decay: NotNegative | None = None


class OptimizerSpec(Spec):
    """AdamW with linear warm-up, decay to `min_learning_rate`, and global-norm clipping.

    `schedule` is a cosine over the rest of the run, or constant with a linear fall over its last
    `warmdown` share, or constant. `zero_based` counts updates from 0, as PyTorch's and optax's
    schedules do: the first of a warm-up has a rate of 0, and the last does not reach the floor.
    Weight decay spares the scales of norms. A weight belongs to the first of `groups` that matches.
    `average` keeps a moving average of the weights with this decay, which is what is evaluated.
    """

    kind: Literal["adamw"] = "adamw"
    learning_rate: Positive = 3e-4
    min_learning_rate: NotNegative = 3e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Annotated[Schedule, Field(exclude_if=unless("warmup-cosine"))] = "warmup-cosine"
    warmdown: Annotated[float, Field(gt=0, le=1, exclude_if=unless(0.65))] = 0.65
    zero_based: Annotated[bool, Field(exclude_if=unless(False))] = False
    b1: Share = 0.9
    b2: Share = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.1
    clip_norm: Positive | None = 1.0
    groups: Annotated[tuple[GroupSpec, ...], Field(max_length=32, exclude_if=unless(()))] = ()
    average: Annotated[AverageDecay | None, Field(exclude_if=unless(None))] = None

    @model_validator(mode="after")
    def _decays(self) -> Self:
        _refuse_rising(self.learning_rate, self.min_learning_rate)
        if self.zero_based and self.schedule != "warmup-cosine":
            raise ValueError("zero_based is for the schedule warmup-cosine alone")
        return self

    def state_bytes(self, model: ModelConfig) -> int:
        """What a checkpoint holds beside the weights."""
        return model.parameters * MOMENT_BYTES * (2 if self.average is None else 3)

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read it."""
        later = self.model_dump(include={"schedule", "warmdown", "zero_based", "groups", "average"})
        return 3 if later or self.clip_norm is None else 2


class MuonSpec(Spec):
    """Muon for the matrices of the blocks, AdamW for everything else.

    A matrix's momentum is made nearly orthogonal by five steps of Polar Express, its rows are
    brought to equal size over time (NorMuon, `b2`), and weights decay only where the update shrinks
    them anyway (cautious weight decay). The rest is AdamW with `adam_…`, and its `groups`. All
    learning rates follow one schedule, on which `learning_rate` falls to `min_learning_rate`.
    `momentum_start` rises to `momentum` over `momentum_warmup_steps`; `momentum_end` is where it
    falls to over the last `warmdown` share. Weight decay is constant, or falls to 0 over the run.
    Sources: Jordan 2024, kellerjordan.github.io/posts/muon; Amsel et al. 2025, arXiv:2505.16932; Li
    et al. 2025, arXiv:2510.05491; Chen et al. 2025, arXiv:2510.12402.
    """

    kind: Literal["muon"] = "muon"
    learning_rate: Positive = 0.02
    min_learning_rate: NotNegative = 0.001
    warmup_steps: Annotated[int, Field(ge=0)] = 40
    schedule: Schedule = "warmup-constant-warmdown"
    warmdown: Annotated[float, Field(gt=0, le=1)] = 0.65
    momentum: Share = 0.95
    momentum_start: Share | None = None
    momentum_warmup_steps: Annotated[int, Field(ge=0)] = 400
    momentum_end: Share | None = None
    b2: Share = 0.9
    weight_decay: NotNegative = 0.28
    weight_decay_schedule: Literal["constant", "linear", "cosine"] = "constant"
    adam_learning_rate: Positive = 0.008
    adam_b1: Share = 0.8
    adam_b2: Share = 0.95
    adam_eps: Positive = 1e-10
    adam_weight_decay: NotNegative = 0.0
    groups: Annotated[tuple[GroupSpec, ...], Field(max_length=32)] = ()
    clip_norm: Positive | None = None
    average: AverageDecay | None = None

    @model_validator(mode="after")
    def _decays(self) -> Self:
        _refuse_rising(self.learning_rate, self.min_learning_rate)
        return self

    def state_bytes(self, model: ModelConfig) -> int:
        """What a checkpoint holds beside the weights; the sizes of rows count for nothing."""
        moments = 2 * model.parameters - model.matrix_parameters
        return MOMENT_BYTES * (moments + (0 if self.average is None else model.parameters))

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read it."""
        return 3


def _refuse_rising(peak: float, floor: float) -> None:
    if floor > peak:
        raise ValueError(f"min_learning_rate {floor:g} is above learning_rate {peak:g}")


def _kind_filled_in(given: object) -> object:
    """Without a `kind` it is AdamW."""
    return {"kind": "adamw", **cast(dict[str, object], given)} if isinstance(given, dict) else given


AnyOptimizer = Annotated[
    Annotated[OptimizerSpec | MuonSpec, Field(discriminator="kind")],
    BeforeValidator(_kind_filled_in),
]
