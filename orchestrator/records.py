"""The rows of the control plane as plain frozen data.

Owns what a decision may know about a run. Imports only the states and the wire types; a record
never reads a database, a clock or a cloud.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.state import (
    AttemptState,
    CheckpointState,
    Desired,
    GroupState,
    RunState,
    Verdict,
)
from worker.protocol import HostsSection, Victim


@dataclass(frozen=True)
class Run:
    """What a person submitted, and where it stands.

    `desired_generation` rises with each wish. `settled_generation` is the wish that the last pause
    answered: a run that Longhaul paused by itself goes on only after a newer wish. A fork names the
    run at whose checkpoint it begins.
    """

    id: str
    name: str
    desired: Desired
    desired_generation: int
    settled_generation: int
    state: RunState
    state_since: datetime
    reason: str | None
    revision: int
    branch: int
    created_at: datetime
    owner: str = ""
    priority: int = 0
    queued_at: datetime | None = None
    save_request: int = 0
    forked_run: str | None = None


@dataclass(frozen=True)
class HostRequest:
    """What a provider is asked for: `hosts` with `devices` each, and what it alone understands."""

    hosts: int
    devices: int
    section: HostsSection | None = None


@dataclass(frozen=True)
class HostGroup:
    """The machines that a provider gave to a run. `name` is deterministic and the cloud's own.

    `exists` and `up` are the provider's newest probe, None before there was one; `refused` its own
    words when it said that it can not give these hosts. `taken` says that the cloud took them away
    (a `Notice`), in the words of `taken_text`; `taken_at` is None until that is written down.
    `lost_in_wish` is the wish under which a host of it was found lost. `again` is why its provider
    wants to be asked for it again while it is not up.
    """

    name: str
    run_id: str
    generation: int
    provider: str
    hosts: int
    devices: int
    state: GroupState
    created_at: datetime
    ready_at: datetime | None = None
    released_at: datetime | None = None
    price_per_hour: float | None = None
    refused: str | None = None
    taken: str | None = None
    taken_at: datetime | None = None
    taken_text: str | None = None
    lost_in_wish: int | None = None
    exists: bool | None = None
    up: bool | None = None
    again: str | None = None
    section: HostsSection | None = None

    @property
    def request(self) -> HostRequest:
        return HostRequest(self.hosts, self.devices, self.section)


@dataclass(frozen=True)
class Host:
    """One machine of a group, as its agent and the provider last told of it.

    `instance` is the registered agent process; `launched_at` the last time one was started. What it
    told when it was seen last was true at `spoke_at` or later: a report can be long on its way.
    `unreachable_at` is since when the timeline says that nothing is heard of it. `agent_alive` and
    `trainer_alive` are the provider's probe, None where it could not tell; `seen_alive_at` is when
    the last probe began that saw either alive. `standby` is where its spare meets the other hosts',
    `standby_ready` that it could begin an attempt now.
    """

    group: str
    index: int
    address: str | None = None
    free_port: int | None = None
    instance: str | None = None
    registered_at: datetime | None = None
    last_seen_at: datetime | None = None
    spoke_at: datetime | None = None
    running_attempt: int | None = None
    launched_at: datetime | None = None
    launches: int = 0
    protocol: int | None = None
    notice: str | None = None
    notice_at: datetime | None = None
    notice_text: str | None = None
    unreachable_at: datetime | None = None
    agent_alive: bool | None = None
    trainer_alive: bool | None = None
    seen_alive_at: datetime | None = None
    standby: str | None = None
    standby_ready: bool = False


INHERITED = 0  # the attempt of an inherited checkpoint: a run's own are counted from 1
HOST_GONE = "host_gone"


@dataclass(frozen=True)
class Pace:
    """How fast a process trained of late, until `at`: medians in seconds, as `StepPace` tells."""

    at: datetime
    step: int
    seconds: float
    own: float
    data_wait: float


@dataclass(frozen=True)
class Trainer:
    """One process of a gang, as its agent told of it.

    `killed_for` is an agent's `KilledFor`, or `HOST_GONE` where it went with its host. `slow_why`
    says how the others wait for it. A program's process that was asked to leave has answered no up
    to step `leave_after`.
    """

    attempt: int
    rank: int
    pid: int | None = None
    phase: str | None = None
    phase_at: datetime | None = None
    last_step: int | None = None
    last_step_at: datetime | None = None
    exited_at: datetime | None = None
    exit_code: int | None = None
    signal: int | None = None
    killed_by_agent: bool = False
    why_killed: str | None = None
    failure: str | None = None
    hint: str | None = None
    finished_step: int | None = None
    drained: bool = False
    last_lines: tuple[str, ...] = ()
    killed_for: str | None = None
    memory_killer: str | None = None
    diverged_step: int | None = None
    diverged_where: str | None = None
    pace: Pace | None = None
    slow_why: str | None = None
    leave_after: int | None = None

    @property
    def exited(self) -> bool:
        return self.exited_at is not None


@dataclass(frozen=True)
class Attempt:
    """One launch of the whole gang.

    `accepted_step` is the highest step of a checkpoint accepted from it; `desired_generation` the
    wish that it was made under, which is how a person's resume starts the budgets afresh.
    It saves every `save_seconds`, where saves come by time.
    `bad_step` is the step at which a diverged one was found so; `revised_from` the first verdict,
    where late evidence changed it. `best_pace_seconds` is the least of what process 0 told as its
    usual step; `slow_why` how it is slower than it was. Steps up to `replays_through` had been told
    before; `replay_differs` is how its own telling differs first, at `replay_differs_step`.
    `drill` is what somebody had killed of it, on purpose.
    """

    run_id: str
    number: int
    revision: int
    branch: int
    group: str
    processes: int
    state: AttemptState
    desired_generation: int
    created_at: datetime
    resume_checkpoint: str | None = None
    resumed_from_step: int = 0
    coordinator: str | None = None
    save_seconds: float | None = None
    spawned_at: datetime | None = None
    first_step_at: datetime | None = None
    stop_asked_at: datetime | None = None
    ended_at: datetime | None = None
    accepted_step: int | None = None
    verdict: Verdict | None = None
    summary: str | None = None
    bad_step: int | None = None
    revised_from: Verdict | None = None
    revised_at: datetime | None = None
    best_pace_seconds: float | None = None
    slow_why: str | None = None
    replays_through: int | None = None
    replay_differs_step: int | None = None
    replay_differs: str | None = None
    replay_told_at: datetime | None = None
    drill: Victim | None = None
    drill_at: datetime | None = None
    drill_by: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    run_id: str
    id: str
    attempt: int
    branch: int
    step: int
    uri: str
    state: CheckpointState
    bytes: int
    manifest_sha256: str
    state_digest: str
    written_at: datetime
    stall_seconds: float = 0.0
    write_seconds: float = 0.0
    accepted_at: datetime | None = None
    verified_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Kept:
    """A usable checkpoint of a run whose spec lets some be deleted, and what may keep it.

    `on_line` says that the run could go back to it by itself, `needed` that a branch or a fork
    begins at it. `loss` and `eval_loss` are those of its step, where they are known.
    """

    id: str
    attempt: int
    branch: int
    step: int
    state: CheckpointState
    on_line: bool
    needed: bool
    loss: float | None = None
    eval_loss: float | None = None


@dataclass(frozen=True)
class Evidence:
    """One thing that was seen: when, by whom, and its words."""

    at: datetime
    source: str
    text: str


@dataclass(frozen=True)
class Incident:
    """A verdict that cost time. Closed by the first new step of a later attempt."""

    run_id: str
    number: int
    attempt: int
    verdict: Verdict
    opened_at: datetime
    summary: str
    evidence: tuple[Evidence, ...] = field(default_factory=tuple[Evidence, ...])
    done: tuple[str, ...] = ()
    needs_person: bool = False
    closed_at: datetime | None = None
    closed_by_attempt: int | None = None
