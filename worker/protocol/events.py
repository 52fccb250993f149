"""Events, from trainer and agent to the control plane, and how a trainer ends."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from worker.protocol.base import Report


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
    step's: since before its dispatch), `data_wait` the part of it that the loop waited for a batch,
    mostly the next step's, which is handed out before this one is complete.
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


class StepPace(Report):
    """How fast a process trained of late: medians over the last `steps` steps, in seconds.

    `own` is the part of a step in which the process itself worked, `data_wait` included: the rest
    it waited for the devices, and in a gang for whoever was last.
    """

    kind: Literal["pace"] = "pace"
    step: int
    steps: int
    seconds: float
    own: float
    data_wait: float


class Evaluated(Report):
    kind: Literal["eval"] = "eval"
    step: int
    loss: float
    batches: int
    seconds: float


class Saving(Report):
    """A save of this host began (`active`), or is over, whatever came of it."""

    kind: Literal["saving"] = "saving"
    step: int
    active: bool


class StacksTaken(Report):
    """From the agent: what a trainer did just before it was ended for standing still.

    `state` is the process's state in words, `stacks` its threads and their Python stacks.
    """

    kind: Literal["stacks"] = "stacks"
    why: str
    state: str
    stacks: str


class LeaveOffered(Report):
    """A program's process was asked to leave, and has answered no up to step `after`.

    It stays until it hears after which step the whole gang leaves.
    """

    kind: Literal["leave_offered"] = "leave_offered"
    after: int


class CheckpointWritten(Report):
    """Every file is in place, the manifest and the marker too; it does not count yet.

    `stall_seconds` is what the loop waited for, `write_seconds` the time until the marker stood.
    `save_request` is the newest wish for a save (`SaveNow`) that it answers; it came with
    protocol 2.
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
    save_request: int = 0


class CheckpointRejected(Report):
    """A checkpoint does not verify and must not be used again."""

    kind: Literal["checkpoint_rejected"] = "checkpoint_rejected"
    checkpoint_id: str
    reason: str


class CheckpointVerified(Report):
    """From the agent: every file has the size and hash that the manifest says (protocol 3)."""

    kind: Literal["checkpoint_verified"] = "checkpoint_verified"
    checkpoint_id: str
    seconds: float


class FilesDeleted(Report):
    """From the agent: nothing is left of a checkpoint that was to be deleted (protocol 3)."""

    kind: Literal["files_deleted"] = "files_deleted"
    uri: str


class SaveFailed(Report):
    kind: Literal["save_failed"] = "save_failed"
    step: int
    reason: str


class StateNotFinite(Report):
    """A non-finite number was found, before anything was saved."""

    kind: Literal["not_finite"] = "not_finite"
    step: int
    where: str


class LossSpiked(Report):
    """The loss left its bound at `step` and did not come back; nothing was saved since.

    `usual` is the median of the losses before, `bound` what it had to stay under.
    """

    kind: Literal["loss_spike"] = "loss_spike"
    step: int
    loss: float
    usual: float
    bound: float


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


class KilledFor(StrEnum):
    """Why an agent ended its own trainer."""

    SUPERSEDED = "superseded"  # another attempt, or another agent, has the run now
    STOPPED = "stopped"  # asked to leave, and the grace ran out
    HUNG = "hung"  # a phase or a step took longer than its limit
    NOTICE = "notice"  # the host is about to go, and the grace ran out
    DEAD_MAN = "dead_man"  # cut off from the control plane for longer than the spec allows
    LEAVING = "leaving"  # the agent itself had to go


# Within the reason why an agent ended a hung trainer, which names the process that stood still.
PROCESS_WAS = "its process was"
STOPPED_PROCESS = f"{PROCESS_WAS} stopped"


class TrainerExited(Report):
    """From the agent, which saw the process end.

    `killed_for` and `memory_killer` came with protocol 2; `memory_killer` is the kernel's own line
    about the process that it ended for want of memory.
    """

    kind: Literal["trainer_exited"] = "trainer_exited"
    exit_code: int | None  # None when a signal ended it
    signal: int | None = None
    last_step: int | None = None
    last_lines: tuple[str, ...] = ()
    killed_by_agent: bool = False
    why_killed: str | None = None
    killed_for: KilledFor | None = None
    memory_killer: str | None = None


class Notice(StrEnum):
    """What a host was told about its own end."""

    PREEMPTED = "preempted"
    MAINTENANCE = "maintenance"
    SHUTDOWN = "shutdown"


class HostNotice(Report):
    """The host is about to go away (protocol 2): a metadata flag, or a signal to the agent."""

    kind: Literal["host_notice"] = "host_notice"
    notice: Notice
    source: str
    text: str


AGENT_SAYS = "agent: "  # so begins a line of the agent among those of its trainer


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
    | StepPace
    | Evaluated
    | Saving
    | CheckpointWritten
    | CheckpointRejected
    | CheckpointVerified
    | FilesDeleted
    | SaveFailed
    | StateNotFinite
    | LossSpiked
    | TrainerFailed
    | TrainerFinished
    | TrainerExited
    | HostNotice
    | StacksTaken
    | LeaveOffered
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
