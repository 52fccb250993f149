"""The spec of a run: what a person submits, checked whole before anything is made.

Words about steps: a step is one optimizer update. Step n is complete when n updates were applied;
a checkpoint at step n holds the state after n updates; a run of `steps: N` ends at step N.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from model.config import ModelConfig
from worker.protocol.base import Count, Positive, Spec
from worker.protocol.data import DataSpec
from worker.protocol.hosts import HostsSpec
from worker.protocol.optimizer import AnyOptimizer, OptimizerSpec

SPEC_VERSION = 1
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"
WEIGHT_BYTES = 4  # of one parameter: float32, whatever the type of the products


class BatchSpec(Spec):
    """The global batch: `sequences` of the model's context each, in `microbatches` equal parts."""

    sequences: Count
    microbatches: Count = 1

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.sequences % self.microbatches:
            raise ValueError(
                f"{self.sequences} sequences do not divide into {self.microbatches} microbatches"
            )
        return self


class EvalSpec(Spec):
    """Held-out loss every `every_steps` steps and at the end, over `batches` fixed batches."""

    every_steps: Count = 100
    batches: Count = 4


class BestSpec(Spec):
    """The `n` checkpoints with the lowest `metric` at their step.

    `loss` is the training loss of the step, `eval_loss` the held-out one, where it was evaluated.
    """

    metric: Literal["eval_loss", "loss"] = "eval_loss"
    n: Annotated[int, Field(ge=1, le=1000)] = 1


class KeepSpec(Spec):
    """Which checkpoints stay: the `newest` ones, and the first one of every `every_steps` steps.

    And the `best`. One that a branch, a fork or a resume needs stays in any case.
    """

    newest: Annotated[int, Field(ge=1, le=1000)] = 3
    every_steps: Count | None = None
    best: BestSpec | None = None


def _left_out(given: object) -> bool:
    """Fields of protocol 3 are sent only where they are set: older agents refuse them."""
    return given is None


class CheckpointSpec(Spec):
    """A save every `every_steps` steps, or every `every_seconds`, and one at the end.

    Where both are given, whichever comes first. `every_seconds: auto` takes the interval that loses
    least, chosen anew for each attempt; `checkpoint: auto` is short for it. Without `keep` nothing
    is ever deleted. A save that is not written after `save_seconds` is abandoned and tried again.
    """

    every_steps: Count | None = 100
    every_seconds: Annotated[
        Annotated[float, Field(ge=1, le=604800)] | Literal["auto"] | None,
        Field(exclude_if=_left_out),
    ] = None
    keep: Annotated[KeepSpec | None, Field(exclude_if=_left_out)] = None
    save_seconds: Annotated[
        Annotated[float, Field(ge=1, le=86400)] | None, Field(exclude_if=_left_out)
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, given: object) -> object:
        if given == "auto":
            return {"every_steps": None, "every_seconds": "auto"}
        if isinstance(given, dict):
            fields = cast(dict[str, object], given)
            if fields.get("every_seconds") is not None:
                return {"every_steps": None, **fields}
        return cast(object, given)

    @model_validator(mode="after")
    def _has_a_cadence(self) -> Self:
        if self.every_steps is None and self.every_seconds is None:
            raise ValueError("give every_steps, every_seconds, or both")
        return self

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read it."""
        set_later = (self.every_seconds, self.keep, self.save_seconds)
        return 3 if self.every_steps is None or any(x is not None for x in set_later) else 2


class SpikeSpec(Spec):
    """When a loss that is finite counts as diverged.

    A loss is suspect when it is over the median of the last `window` good ones by `rise` nats and
    by `deviations` standard deviations, both at least; nothing is saved then. `patience` suspect
    losses in a row are a spike. Nothing is judged before `least` losses are known.
    """

    window: Annotated[int, Field(ge=8, le=10_000)] = 200
    least: Annotated[int, Field(ge=8, le=10_000)] = 100
    deviations: Positive = 20.0
    rise: Positive = 0.5
    patience: Annotated[int, Field(ge=1, le=1000)] = 5

    @model_validator(mode="after")
    def _can_judge(self) -> Self:
        if self.least > self.window:
            raise ValueError(f"least {self.least} is more than window {self.window}")
        return self


class HangSpec(Spec):
    """How long a trainer may stay in one place before it counts as hung, in seconds.

    `start_seconds` holds for each of spawn, import and init; `compile_seconds` for compiling and
    for the first step. A later step may take `step_seconds` or, where that is longer,
    `step_factor` times what nearly all recent steps took; while a save is under way a step may
    take `save_seconds`, and so may the save itself.
    """

    start_seconds: Annotated[float, Field(ge=5, le=86400)] = 600.0
    restore_seconds: Annotated[float, Field(ge=5, le=86400)] = 1800.0
    compile_seconds: Annotated[float, Field(ge=5, le=86400)] = 1800.0
    step_seconds: Annotated[float, Field(ge=5, le=86400)] = 60.0
    step_factor: Annotated[float, Field(ge=2, le=1000)] = 10.0
    eval_seconds: Annotated[float, Field(ge=5, le=86400)] = 1800.0
    save_seconds: Annotated[float, Field(ge=5, le=86400)] = 900.0


SPARE_SECONDS = 10.0  # the first steps are not to be slowed down
SLOW_HOST_FACTOR, SLOW_RUN_FACTOR = 2.0, 1.5
REPLAY_ENVELOPE = 0.01


class PolicySpec(Spec):
    """What is tolerated before a person is asked.

    `max_crashes`, `max_host_losses` and `max_rollbacks` count ends of one class in a row without
    progress, `max_ends` those of all classes together; progress is a new highest accepted step.
    `max_hours` bounds the hours that the run holds hosts, `max_cost` what they cost in the
    service's currency, both over the whole life of the run. A pause gives its hosts back after
    `hold_seconds`; None leaves that to the provider. `dead_man_seconds` lets an agent that is cut
    off from the control plane for so long stop its trainer; None, the default, never does. After
    `spare_seconds` of training a spare trainer gets ready beside it for the next attempt; None
    keeps none. Waits and graces are in seconds.

    A host that all the others wait for is named when its own work in a step takes
    `slow_host_factor` times that of the others, and a run when its steps take `slow_run_factor`
    times what they took before; None names none. Nothing is stopped for it.

    A step that is trained again must tell the same to the last bit. Where other devices, another
    number of them, or other versions train it, its loss may be `replay_envelope` away, as a share;
    its batch must be the same all the same.

    Failed saves end an attempt after `max_failed_saves` in a row, or when nothing was saved for
    `max_unsaved_seconds` and the last try failed; with neither, after three in a row.
    """

    max_crashes: Annotated[int, Field(ge=0, le=1000)] = 5
    max_host_losses: Annotated[int, Field(ge=0, le=1000)] = 20
    max_rollbacks: Annotated[int, Field(ge=0, le=1000)] = 3
    max_ends: Annotated[int, Field(ge=1, le=1000)] = 30
    max_hours: Positive | None = None
    max_cost: Positive | None = None
    backoff_seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0
    max_backoff_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    grace_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    start_seconds: Annotated[float, Field(gt=0, le=86400)] = 600.0
    hold_seconds: Annotated[float, Field(ge=0, le=604800)] | None = None
    dead_man_seconds: Annotated[float, Field(ge=60, le=604800)] | None = None
    hang: HangSpec = HangSpec()
    spike: SpikeSpec | None = SpikeSpec()
    max_failed_saves: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None, Field(exclude_if=_left_out)
    ] = None
    max_unsaved_seconds: Annotated[
        Annotated[float, Field(ge=1, le=604800)] | None, Field(exclude_if=_left_out)
    ] = None
    slow_host_factor: Annotated[
        Annotated[float, Field(gt=1, le=1000)] | None,
        Field(exclude_if=lambda given: given == SLOW_HOST_FACTOR),
    ] = SLOW_HOST_FACTOR
    slow_run_factor: Annotated[
        Annotated[float, Field(gt=1, le=1000)] | None,
        Field(exclude_if=lambda given: given == SLOW_RUN_FACTOR),
    ] = SLOW_RUN_FACTOR
    replay_envelope: Annotated[
        float, Field(ge=0, le=1, exclude_if=lambda given: given == REPLAY_ENVELOPE)
    ] = REPLAY_ENVELOPE
    spare_seconds: Annotated[
        Annotated[float, Field(ge=0, le=86400)] | None,
        Field(exclude_if=lambda given: given == SPARE_SECONDS),  # older agents refuse it
    ] = SPARE_SECONDS

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read it."""
        set_later = (
            self.max_failed_saves is not None,
            self.max_unsaved_seconds is not None,
            self.spare_seconds != SPARE_SECONDS,
            self.slow_host_factor != SLOW_HOST_FACTOR,
            self.slow_run_factor != SLOW_RUN_FACTOR,
            self.replay_envelope != REPLAY_ENVELOPE,
        )
        return 3 if any(set_later) else 2


def hosts_by_count(given: object) -> object:
    """`hosts: 2` is short for `hosts: {count: 2}`."""
    return {"count": given} if isinstance(given, int) and not isinstance(given, bool) else given


def refuse_long_saves(checkpoint: CheckpointSpec, policy: PolicySpec) -> None:
    save, hang = checkpoint.save_seconds, policy.hang.save_seconds
    if save is not None and save >= hang:
        raise ValueError(
            f"checkpoint.save_seconds {save:g} is not below policy.hang.save_seconds {hang:g},"
            f" after which the trainer is ended"
        )


def save_limit_seconds(checkpoint: CheckpointSpec, policy: PolicySpec) -> float:
    return checkpoint.save_seconds or policy.hang.save_seconds * 2 / 3


class JobSpec(Spec):
    """What a person submits. Each change makes a new, numbered revision of it."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    model: ModelConfig
    data: DataSpec = DataSpec()
    steps: Annotated[int, Field(gt=0, le=1_000_000_000)]
    batch: BatchSpec
    optimizer: AnyOptimizer = OptimizerSpec()
    eval: EvalSpec = EvalSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    hosts: HostsSpec = HostsSpec()
    policy: PolicySpec = PolicySpec()
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    deterministic: bool = True

    @field_validator("hosts", mode="before")
    @classmethod
    def _hosts_by_count(cls, given: object) -> object:
        return hosts_by_count(given)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        least = self.data.least_vocabulary
        if self.model.vocab_size < least:
            what = "byte-level text" if self.data.tokenizer is None else "data.tokenizer"
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size}, but {what} needs"
                f" {least} ids; set model.vocab_size to {least} or more"
            )
        devices = self.hosts.count * self.hosts.devices
        part = self.batch.sequences // self.batch.microbatches
        if part % devices:
            raise ValueError(
                f"batch.sequences / batch.microbatches is {part}, which does not divide over"
                f" {devices} devices; make it a multiple of {devices}"
            )
        refuse_long_saves(self.checkpoint, self.policy)
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} is more than"
                f" steps {self.steps}"
            )
        return self

    @property
    def save_limit_seconds(self) -> float:
        """After which a save is abandoned: well before its trainer would count as hung."""
        return save_limit_seconds(self.checkpoint, self.policy)

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read the spec."""
        parts = (self.model, self.data, self.optimizer, self.checkpoint, self.hosts, self.policy)
        return max(part.needs_protocol for part in parts)

    @property
    def tokens_per_step(self) -> int:
        return self.batch.sequences * self.model.context

    @property
    def checkpoint_bytes(self) -> int:
        """Expected size of one checkpoint's arrays, in bytes."""
        weights = self.model.parameters * WEIGHT_BYTES
        return weights + self.optimizer.state_bytes(self.model)
