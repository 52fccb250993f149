"""Wire types between a person, the control plane, the agents and the trainers.

Owns the spec of a run, the spec of an attempt, the events that flow up and the commands that flow
down, and their version. Must not import JAX and does no IO. Every type is frozen; specs refuse
unknown keys, while events keep what a newer sender added, so that nothing reported is lost.

Words about steps: a step is one optimizer update. Step n is complete when n updates were applied;
a checkpoint at step n holds the state after n updates; a run of `steps: N` ends at step N.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)

from model.config import ModelConfig

PROTOCOL_VERSION = 1
SUPPORTED_PROTOCOLS = frozenset({1})
SPEC_VERSION = 1
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"
BYTE_VOCABULARY = 257  # 256 byte values and one end-of-document id
STATE_BYTES_PER_PARAMETER = 12  # float32 weights and two float32 AdamW moments

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class Spec(BaseModel):
    """Base of what people and the control plane write: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Report(BaseModel):
    """Base of what workers report: frozen, unknown keys kept."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="strings")


# ---- the spec of a run -------------------------------------------------------------------------


class PythonSource(Spec):
    """The running interpreter's own standard library as text, byte by byte (tests left out)."""

    kind: Literal["python-source"] = "python-source"


class TextFiles(Spec):
    """UTF-8 or any other text, read as bytes: one file, or every matching file below a folder."""

    kind: Literal["text"] = "text"
    path: str
    suffixes: tuple[str, ...] = (".txt", ".md", ".py")

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if not pure.is_absolute() or ".." in pure.parts or "\0" in path:
            raise ValueError("give an absolute path without '..', as the training host sees it")
        return path


DataSource = Annotated[PythonSource | TextFiles, Field(discriminator="kind")]


class DataSpec(Spec):
    """What is trained on, and which share of its files is held out for evaluation."""

    source: DataSource = PythonSource()
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.02


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


class OptimizerSpec(Spec):
    """AdamW with linear warm-up, cosine decay to `min_learning_rate`, and global-norm clipping."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: Positive = 3e-4
    min_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    clip_norm: Positive = 1.0

    @model_validator(mode="after")
    def _decays(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above"
                f" learning_rate {self.learning_rate:g}"
            )
        return self


class EvalSpec(Spec):
    """Held-out loss every `every_steps` steps and at the end, over `batches` fixed batches."""

    every_steps: Count = 100
    batches: Count = 4


class CheckpointSpec(Spec):
    """A save every `every_steps` steps and at the end."""

    every_steps: Count = 100


class HostsSpec(Spec):
    """Where the gang runs: `count` hosts from `provider`, each with `devices` devices."""

    provider: Literal["local"] = "local"
    count: Annotated[int, Field(gt=0, le=64)] = 1
    devices: Annotated[int, Field(gt=0, le=64)] = 1


class PolicySpec(Spec):
    """What is tolerated before a person is asked.

    `max_crashes` counts crashed attempts in a row without a new highest accepted step.
    Waits and graces are in seconds.
    """

    max_crashes: Annotated[int, Field(ge=0, le=1000)] = 5
    max_host_losses: Annotated[int, Field(ge=0, le=1000)] = 20
    backoff_seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0
    max_backoff_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    grace_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    start_seconds: Annotated[float, Field(gt=0, le=86400)] = 600.0


class JobSpec(Spec):
    """What a person submits. Each change makes a new, numbered revision of it."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    model: ModelConfig
    data: DataSpec = DataSpec()
    steps: Annotated[int, Field(gt=0, le=1_000_000_000)]
    batch: BatchSpec
    optimizer: OptimizerSpec = OptimizerSpec()
    eval: EvalSpec = EvalSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    hosts: HostsSpec = HostsSpec()
    policy: PolicySpec = PolicySpec()
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    deterministic: bool = True

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, given: object) -> object:
        return {"preset": given} if isinstance(given, str) else given

    @field_validator("hosts", mode="before")
    @classmethod
    def _hosts_by_count(cls, given: object) -> object:
        return {"count": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.model.vocab_size < BYTE_VOCABULARY:
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size}, but byte-level text needs"
                f" {BYTE_VOCABULARY} ids; set model.vocab_size to {BYTE_VOCABULARY} or more"
            )
        devices = self.hosts.count * self.hosts.devices
        part = self.batch.sequences // self.batch.microbatches
        if part % devices:
            raise ValueError(
                f"batch.sequences / batch.microbatches is {part}, which does not divide over"
                f" {devices} devices; make it a multiple of {devices}"
            )
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} is more than"
                f" steps {self.steps}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.batch.sequences * self.model.context

    @property
    def checkpoint_bytes(self) -> int:
        """Expected size of one checkpoint's arrays, in bytes."""
        return self.model.parameters * STATE_BYTES_PER_PARAMETER


# ---- the spec of an attempt --------------------------------------------------------------------


class Skip(Spec):
    """Batches `first` to `last` (both included, in plan order) are never trained, and why."""

    first: Annotated[int, Field(ge=0)]
    last: Annotated[int, Field(ge=0)]
    reason: str


class DataPlan(Spec):
    """Which batch belongs to which step. Append-only: recorded skips are only ever added."""

    seed: int
    skips: tuple[Skip, ...] = ()

    def batch_index(self, step: int) -> int:
        """The index in plan order of the batch that takes the run from `step` to `step + 1`."""
        index = step
        for skip in sorted(self.skips, key=lambda skip: skip.first):
            if skip.first <= index:
                index += skip.last - skip.first + 1
        return index


class ResumePoint(Spec):
    """The accepted checkpoint to start from: `uri` is its directory."""

    checkpoint_id: str
    step: int
    uri: str
    manifest_sha256: str


class AttemptSpec(Spec):
    """One launch of the whole gang, the same for each of its hosts."""

    protocol: int = PROTOCOL_VERSION
    run_id: str
    attempt: Count
    branch: int
    revision: int
    job: JobSpec
    data_plan: DataPlan
    storage: str  # the attempt's own directory: <uri>/runs/<run>/a<attempt>
    resume: ResumePoint | None = None
    process_count: Count = 1
    coordinator: str | None = None  # "address:port" of process 0; set for several processes

    def checkpoint_id(self, step: int) -> str:
        """Ids are derived, so that a report repeated after a crash names the same checkpoint."""
        return f"a{self.attempt}-s{step}"

    def checkpoint_uri(self, step: int) -> str:
        return f"{self.storage}/checkpoints/{step}"


# ---- events: trainer and agent -> control plane ------------------------------------------------


class Phase(StrEnum):
    """Where a trainer is; each has a time limit of its own."""

    SPAWN = "spawn"
    IMPORT = "import"
    INIT = "init"
    RESTORE = "restore"
    COMPILE = "compile"
    TRAIN = "train"
    EVAL = "eval"
    FINISH = "finish"


class ExitCode(IntEnum):
    """How a trainer ends when it can still choose."""

    DONE = 0
    INVALID = 65  # this can never work: bad data, a spec that the host refutes
    CHECKPOINT_REJECTED = 66  # the checkpoint to resume from does not verify
    PEER_LOST = 67  # a collective failed: a consequence of another trainer's end
    STORAGE_FAILED = 68  # a save or restore failed after retries
    DIVERGED = 69  # the state is not finite
    DRAINED = 75  # asked to stop: saved, then left


class PhaseEntered(Report):
    kind: Literal["phase"] = "phase"
    phase: Phase
    previous: Phase | None = None
    previous_seconds: float | None = None  # monotonic, how long the previous phase took


class TrainerStarted(Report):
    kind: Literal["trainer_started"] = "trainer_started"
    pid: int
    numerics_key: str | None = None


class Resumed(Report):
    """The state was restored and every digest equals the saved one."""

    kind: Literal["resumed"] = "resumed"
    checkpoint_id: str
    step: int
    state_digest: str


class StepCompleted(Report):
    """One update, from process 0. `loss` and `grad_norm` are exact float32 values.

    `seconds` is the monotonic time since the previous step of this attempt was complete (the first
    step's: since its dispatch), `data_wait` the part of it that waited for a batch.
    """

    kind: Literal["step"] = "step"
    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    data_wait: float
    batch_hash: str


class StepBeat(Report):
    """A process other than 0 finished a step: evidence of life, no metrics."""

    kind: Literal["beat"] = "beat"
    step: int
    seconds: float
    data_wait: float


class Evaluated(Report):
    kind: Literal["eval"] = "eval"
    step: int
    loss: float
    batches: int
    seconds: float


class CheckpointWritten(Report):
    """Every file is in place, the manifest and the marker too; it does not count yet.

    `stall_seconds` is what the loop waited for, `write_seconds` the time until the marker stood.
    """

    kind: Literal["checkpoint_written"] = "checkpoint_written"
    checkpoint_id: str
    step: int
    uri: str
    bytes: int
    files: int
    manifest_sha256: str
    state_digest: str
    stall_seconds: float
    write_seconds: float
    final: bool = False


class CheckpointRejected(Report):
    """A checkpoint does not verify and must not be used again."""

    kind: Literal["checkpoint_rejected"] = "checkpoint_rejected"
    checkpoint_id: str
    reason: str


class SaveFailed(Report):
    kind: Literal["save_failed"] = "save_failed"
    step: int
    reason: str


class StateNotFinite(Report):
    """A non-finite number was found, before anything was saved."""

    kind: Literal["not_finite"] = "not_finite"
    step: int
    where: str


class TrainerFailed(Report):
    """The trainer's own words about its end, sent just before it exits with `exit_code`."""

    kind: Literal["trainer_failed"] = "trainer_failed"
    exit_code: int
    error: str
    hint: str | None = None
    field: str | None = None  # the spec's field at fault, as a JSON pointer, if one is


class TrainerFinished(Report):
    """The last step is trained, and its checkpoint accepted (or, after a drain, the drain's)."""

    kind: Literal["trainer_finished"] = "trainer_finished"
    step: int
    drained: bool = False


class TrainerExited(Report):
    """From the agent, which saw the process end."""

    kind: Literal["trainer_exited"] = "trainer_exited"
    exit_code: int | None  # None when a signal ended it
    signal: int | None = None
    last_step: int | None = None
    last_lines: tuple[str, ...] = ()
    killed_by_agent: bool = False
    why_killed: str | None = None


class LogLines(Report):
    kind: Literal["log"] = "log"
    lines: tuple[str, ...]


class Unknown(Report):
    """An event of a newer sender: stored untouched."""

    kind: str


KnownEvent = Annotated[
    PhaseEntered
    | TrainerStarted
    | Resumed
    | StepCompleted
    | StepBeat
    | Evaluated
    | CheckpointWritten
    | CheckpointRejected
    | SaveFailed
    | StateNotFinite
    | TrainerFailed
    | TrainerFinished
    | TrainerExited
    | LogLines,
    Field(discriminator="kind"),
]
Event = Annotated[KnownEvent | Unknown, Field(union_mode="left_to_right")]
EVENT: TypeAdapter[KnownEvent | Unknown] = TypeAdapter(Event)


class Envelope(Report):
    """One event with its origin.

    `seq` rises by one within a host's spool and makes delivery exactly-once; `at` is the host's
    wall clock, `mono` its monotonic clock in seconds.
    """

    seq: int
    attempt: int
    rank: int
    at: AwareDatetime
    mono: float
    event: Event


# ---- commands: control plane -> agent -> trainer -----------------------------------------------


class StartTrainer(Spec):
    """Run this attempt's process `rank`, unless it already runs here or has run here."""

    kind: Literal["start"] = "start"
    spec: AttemptSpec
    rank: int


class DrainTrainer(Spec):
    """Save at the next step that all processes agree on, then leave; SIGKILL after the grace."""

    kind: Literal["drain"] = "drain"
    attempt: int
    grace_seconds: float


class KillTrainer(Spec):
    """End the trainer of `attempt`, or of any attempt up to it, at once."""

    kind: Literal["kill"] = "kill"
    attempt: int
    reason: str


class Retire(Spec):
    """The host is given back: kill what runs, deliver what is spooled, exit."""

    kind: Literal["retire"] = "retire"


Command = Annotated[StartTrainer | DrainTrainer | KillTrainer | Retire, Field(discriminator="kind")]


# ---- the agents' calls -------------------------------------------------------------------------


class HostFacts(Report):
    """What an agent knows about its host. `free_port` is unused now, for a coordinator."""

    hostname: str
    address: str
    free_port: int
    cpus: int
    memory_bytes: int
    disk_free_bytes: int
    python: str


class Register(Report):
    """An agent process presents itself: POST /api/v1/agents/register.

    It has made sure before that no trainer of an earlier agent process lives on its host.
    """

    protocol: int
    group: str
    host: int
    instance: str  # random, new for each agent process
    facts: HostFacts


class Registered(Report):
    protocol: int
    acked_seq: int  # everything up to here is stored; the spool may drop it
    commands: tuple[Command, ...] = ()


class AgentReport(Report):
    """Events and heartbeat in one: POST /api/v1/agents/report.

    With `wait_seconds` > 0 and nothing to command, the answer is held back that long at most.
    `known_commands` is the digest of the last answer's commands: the same ones don't end the wait.
    """

    group: str
    host: int
    instance: str
    events: tuple[Envelope, ...] = ()
    running_attempt: int | None = None
    free_port: int | None = None
    wait_seconds: Annotated[float, Field(ge=0, le=60)] = 0.0
    known_commands: str = ""


class ReportAnswer(Report):
    acked_seq: int
    commands: tuple[Command, ...] = ()
    commands_digest: str = ""
    next_report_seconds: float = 1.0


class CheckpointOffer(Report):
    """A written checkpoint asks to count: POST /api/v1/agents/checkpoints (409 when stale)."""

    group: str
    host: int
    instance: str
    run_id: str
    attempt: int
    checkpoint: CheckpointWritten


class CheckpointAccepted(Report):
    run_id: str
    checkpoint_id: str
    step: int
    accepted_at: AwareDatetime
    manifest_sha256: str


# ---- trainer <-> agent, over a local socket: one JSON object a line ------------------------------


class ToTrainerAccepted(Spec):
    kind: Literal["accepted"] = "accepted"
    acceptance: CheckpointAccepted


class ToTrainerDrain(Spec):
    kind: Literal["drain"] = "drain"


ToTrainer = Annotated[ToTrainerAccepted | ToTrainerDrain, Field(discriminator="kind")]
TO_TRAINER: TypeAdapter[ToTrainerAccepted | ToTrainerDrain] = TypeAdapter(ToTrainer)
