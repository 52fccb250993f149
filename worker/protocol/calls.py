"""Commands down to agents and trainers, and the agents' calls that carry them and the events."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from worker.protocol.attempt import AttemptSpec, ResumePoint
from worker.protocol.base import Report, Spec
from worker.protocol.events import CheckpointWritten, Envelope

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


class SaveNow(Spec):
    """Save at the next step that all processes agree on, and go on (protocol 2).

    `request` rises with each wish of a person; one that was served already is left out.
    """

    kind: Literal["save"] = "save"
    attempt: int
    request: int


class KillTrainer(Spec):
    """End the trainer of `attempt`, or of any attempt up to it, at once."""

    kind: Literal["kill"] = "kill"
    attempt: int
    reason: str


class Victim(StrEnum):
    """What a drill kills."""

    TRAINER = "trainer"
    AGENT = "agent"
    HOST = "host"


class Drill(Spec):
    """Kill on purpose what runs of `attempt` here, as a fault would: nobody is told (protocol 3).

    An agent kills its trainer with SIGKILL; itself, and its trainer dies with it; or all that it
    has on the host, itself last. It holds for the trainer of `attempt` alone, however often it
    comes.
    """

    kind: Literal["drill"] = "drill"
    attempt: int
    victim: Victim


class DeleteCheckpoints(Spec):
    """Remove the folders of checkpoints that the ledger has given up for good (protocol 3).

    There is no way back from that, so the command holds whenever and however often it comes. The
    agent tells of each that is gone, as of `attempt`.
    """

    kind: Literal["delete"] = "delete"
    run_id: str
    attempt: int
    uris: tuple[str, ...]


class StandBy(Spec):
    """The spare beside `attempt`'s process is to meet the other hosts' spares (protocol 3).

    They meet at `coordinator`, where host 0 has said that its own spare is; `point` is what the
    next attempt would begin with as things stand. Nothing happens where a spare is not due yet.
    """

    kind: Literal["stand_by"] = "stand_by"
    attempt: int
    coordinator: str
    point: ResumePoint | None = None


class LeaveAt(Spec):
    """A program's processes leave after the same step (protocol 3).

    Without one, another process of the gang was asked to leave, and this one is to say from which
    step on it can.
    """

    kind: Literal["leave_at"] = "leave_at"
    attempt: int
    step: int | None = None


class Retire(Spec):
    """The host is given back: kill what runs, deliver what is spooled, exit."""

    kind: Literal["retire"] = "retire"


Command = Annotated[
    StartTrainer
    | DrainTrainer
    | SaveNow
    | KillTrainer
    | Drill
    | DeleteCheckpoints
    | StandBy
    | LeaveAt
    | Retire,
    Field(discriminator="kind"),
]


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
    at: AwareDatetime | None = None


class AgentReport(Report):
    """Events and heartbeat in one: POST /api/v1/agents/report.

    With `wait_seconds` > 0 and nothing to command, the answer is held back that long at most.
    `known_commands` is the digest of the last answer's commands: the same ones don't end the wait.
    `answered_at` repeats the `at` of the newest answer that the agent had as it made the report,
    which shows how long the report can have been on its way. `standby` is where the spare of this
    host meets those of the others, and `standby_ready` that it could be given an order now.
    """

    group: str
    host: int
    instance: str
    events: tuple[Envelope, ...] = ()
    running_attempt: int | None = None
    free_port: int | None = None
    wait_seconds: Annotated[float, Field(ge=0, le=60)] = 0.0
    known_commands: str = ""
    answered_at: AwareDatetime | None = None
    standby: str | None = None
    standby_ready: bool = False


class ReportAnswer(Report):
    """`at` is when it was given, by the control plane's clock."""

    acked_seq: int
    commands: tuple[Command, ...] = ()
    commands_digest: str = ""
    next_report_seconds: float = 1.0
    at: AwareDatetime | None = None


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


class ToTrainerSave(Spec):
    kind: Literal["save"] = "save"
    request: int


class ToSpareWarm(Spec):
    """A trainer that waits gets ready for what follows `start`: as far as `level` says.

    That of a gang meets the others that wait at `coordinator`.
    """

    kind: Literal["warm"] = "warm"
    start: StartTrainer
    coordinator: str | None = None
    level: Literal["imports", "compiled", "state"]


class ToSparePreload(Spec):
    """It is to hold this checkpoint, in place of any that it holds."""

    kind: Literal["preload"] = "preload"
    point: ResumePoint


class SpareReady(Report):
    """What a waiting trainer was told to get ready is ready, `seconds` after it was told."""

    kind: Literal["spare_ready"] = "spare_ready"
    level: str
    checkpoint_id: str | None = None
    seconds: float


ToTrainer = Annotated[
    ToTrainerAccepted | ToTrainerDrain | ToTrainerSave, Field(discriminator="kind")
]
TO_TRAINER: TypeAdapter[ToTrainerAccepted | ToTrainerDrain | ToTrainerSave] = TypeAdapter(ToTrainer)
ToSpare = Annotated[ToSpareWarm | ToSparePreload | StartTrainer, Field(discriminator="kind")]
TO_SPARE: TypeAdapter[ToSpareWarm | ToSparePreload | StartTrainer] = TypeAdapter(ToSpare)
