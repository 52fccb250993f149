"""The spec of a run whose program is the submitter's own, and what its agent reads of it.

Which fields it has is the whole difference to `JobSpec`: nothing is known here of a model, a batch
or a loss beyond what the program tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from worker.protocol.base import Report, Spec
from worker.protocol.hosts import HostsSpec
from worker.protocol.spec import (
    NAME_PATTERN,
    SPARE_SECONDS,
    CheckpointSpec,
    JobSpec,
    PolicySpec,
    SpikeSpec,
    hosts_by_count,
    refuse_long_saves,
    save_limit_seconds,
)

BUNDLE_PATTERN = r"^sha256:[0-9a-f]{64}$"
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
RESERVED = "LONGHAUL_"
STEP_PLACE = "{step}"
STEP_GROUPS = frozenset({"step", "loss"})
# What a program is told about its attempt; `${NAME}` in an argument stands for the value.
TOLD = frozenset(
    RESERVED + name
    for name in (
        "RUN", "ATTEMPT", "RANK", "WORLD", "COORDINATOR", "STORAGE", "RESUME", "RESUME_STEP",
        "SOCKET", "STEPS", "SEED",
    )
)  # fmt: skip
ARGUMENT_PLACE = re.compile(r"\$\{(LONGHAUL_[A-Z_]*)\}")
NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f]")

Text = Annotated[str, Field(max_length=32768)]
Name = Annotated[str, Field(pattern=VARIABLE_PATTERN)]


class Meaning(StrEnum):
    """What a program can mean by an exit code other than 0."""

    DONE = "done"
    DRAINED = "drained"
    INVALID = "invalid"
    DIVERGED = "diverged"
    STORAGE_FAILED = "storage_failed"
    OUT_OF_MEMORY = "out_of_memory"
    CHECKPOINT_REJECTED = "checkpoint_rejected"
    CRASHED = "crashed"


class ReadsSpec(Spec):
    """What the agent reads of a program that does not speak to it.

    `step` finds the steps in its output, line by line: an expression of RE2 with a group `step` and
    perhaps a group `loss`. `checkpoints` is the path of a finished checkpoint below
    LONGHAUL_STORAGE, with {step} for the number; `complete` is a file in it that is written last.
    """

    step: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    checkpoints: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    complete: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    exit_codes: Mapping[Annotated[int, Field(ge=1, le=255)], Meaning] = Field(
        default_factory=dict[int, Meaning]
    )

    @field_validator("step")
    @classmethod
    def _finds_steps(cls, given: str | None) -> str | None:
        if given is not None:
            groups = step_groups(given)
            if "step" not in groups:
                raise ValueError("it needs a group for the number, as in step (?P<step>[0-9]+)")
            if other := sorted(groups - STEP_GROUPS):
                raise ValueError(f"it has a group {other[0]!r}; there are step and loss")
        return given

    @field_validator("checkpoints")
    @classmethod
    def _has_a_place(cls, given: str | None) -> str | None:
        if given is not None:
            _refuse_outside(given)
            if given.count(STEP_PLACE) != 1:
                raise ValueError(f"it names the step once, as in ckpt/step-{STEP_PLACE}")
        return given

    @field_validator("complete")
    @classmethod
    def _lies_inside(cls, given: str | None) -> str | None:
        if given is not None:
            _refuse_outside(given)
        return given

    @model_validator(mode="after")
    def _has_what_it_completes(self) -> Self:
        if self.complete is not None and self.checkpoints is None:
            raise ValueError("complete says nothing without checkpoints")
        return self


class CommandSpec(Spec):
    """A run of any program: `command` is its argument list, never a line for a shell.

    `${LONGHAUL_STORAGE}` and the like in an argument stand for what the attempt is told. `bundle`
    names the packed folder that it runs in; `env` are plain values, `secrets` the names of values
    that the service keeps. The program gets its attempt through its environment, and trains to step
    `steps`.
    """

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    command: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)]
    bundle: Annotated[str, Field(pattern=BUNDLE_PATTERN)] | None = None
    env: Mapping[Name, Text] = Field(default_factory=dict[str, str])
    secrets: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    reads: ReadsSpec = ReadsSpec()
    steps: Annotated[int, Field(gt=0, le=1_000_000_000)]
    checkpoint: CheckpointSpec = CheckpointSpec()
    hosts: HostsSpec = HostsSpec()
    policy: PolicySpec = PolicySpec(spike=None, spare_seconds=None)
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0

    @field_validator("command", mode="before")
    @classmethod
    def _as_a_list(cls, given: object) -> object:
        if isinstance(given, str):
            raise ValueError("give a list of arguments, as in [python, train.py]")
        return given

    @field_validator("command")
    @classmethod
    def _can_be_started(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not given[0]:
            raise ValueError("its first argument names the program")
        if any("\0" in argument for argument in given):
            raise ValueError("an argument holds a NUL")
        for name in (name for argument in given for name in ARGUMENT_PLACE.findall(argument)):
            if name not in TOLD:
                raise ValueError(f"there is no {name}; there are {', '.join(sorted(TOLD))}")
        return given

    @field_validator("hosts", mode="before")
    @classmethod
    def _hosts_by_count(cls, given: object) -> object:
        return hosts_by_count(given)

    @field_validator("policy")
    @classmethod
    def _without_a_model(cls, given: PolicySpec) -> PolicySpec:
        """No spare can stand by for a program, and only the program knows its loss."""
        if given.spike not in (None, SpikeSpec()):
            raise ValueError("spike is for runs with a model; this program judges its own loss")
        if given.spare_seconds not in (None, SPARE_SECONDS):
            raise ValueError("spare_seconds is for runs with a model; a program has no spare")
        return given.model_copy(update={"spike": None, "spare_seconds": None})

    @field_validator("env")
    @classmethod
    def _plain_values(cls, given: Mapping[str, str]) -> Mapping[str, str]:
        if len(given) > 200:
            raise ValueError("it has more than 200 variables")
        for name, value in given.items():
            refuse_reserved(name)
            if "\0" in value:
                raise ValueError(f"the value of {name} holds a NUL")
        return given

    @field_validator("secrets")
    @classmethod
    def _names_alone(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            refuse_reserved(name)
        if len(set(given)) < len(given):
            raise ValueError("a name is in it twice")
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse_long_saves(self.checkpoint, self.policy)
        if both := sorted(set(self.env) & set(self.secrets)):
            raise ValueError(f"secrets and env both name {both[0]}; take it out of one of them")
        return self

    @property
    def save_limit_seconds(self) -> float:
        """After which a save is abandoned: well before its program would count as hung."""
        return save_limit_seconds(self.checkpoint, self.policy)

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read the spec."""
        return 3


AnySpec = JobSpec | CommandSpec


def spec_model(given: object) -> type[JobSpec] | type[CommandSpec]:
    """Which of the two a document is meant to be: one with a `command` is a program's."""
    return CommandSpec if isinstance(given, dict) and "command" in given else JobSpec


def step_groups(pattern: str) -> frozenset[str]:
    """The named groups of an expression; raises ValueError where RE2 can not read it."""
    import re2  # pyright: ignore[reportMissingTypeStubs] - slow to load, and few specs need it

    engine: Any = re2  # it has no types
    options = engine.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return frozenset(engine.compile(pattern, options).groupindex)
    except engine.error as error:
        said = error.args[0] if error.args else error
        words = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(f"it is no expression of RE2: {words}") from None


def refuse_reserved(name: str) -> None:
    if name.upper().startswith(RESERVED):
        raise ValueError(f"{name}: names that begin with {RESERVED} are Longhaul's own")


def _refuse_outside(given: str) -> None:
    pure = PurePosixPath(given)
    outside = pure.is_absolute() or ".." in pure.parts or not pure.parts
    if outside or NOT_PLAIN.search(given) or str(pure) != given:
        raise ValueError("give a plain path below LONGHAUL_STORAGE, without '..'")


# ---- an agent's call for what no spec holds ------------------------------------------------------


class SecretsAsked(Report):
    """An agent is about to start the program of `attempt`: POST /api/v1/agents/secrets."""

    group: str
    host: int
    instance: str
    attempt: int


class Secrets(Report):
    """The values by name; they go into the program's environment and nowhere else."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    values: Annotated[Mapping[str, str], Field(repr=False)]


# ---- program <-> agent, over a local socket ------------------------------------------------------


class FolderSaved(Report):
    """A program has written a checkpoint, which the agent takes over and offers.

    `request` is the newest wish for a save that the program knew of then.
    """

    kind: Literal["folder"] = "folder"
    step: Annotated[int, Field(gt=0, le=1_000_000_000)]
    path: str
    request: int = 0


class FolderRefused(Spec):
    """The checkpoint at `step` does not count, and why."""

    kind: Literal["refused"] = "refused"
    step: int
    reason: str


class ProgramLeaves(Spec):
    """The program is to leave after `step`, or to say from which step on it can."""

    kind: Literal["leave"] = "leave"
    step: int | None
