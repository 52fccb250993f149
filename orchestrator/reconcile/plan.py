"""What a decision answers: changes of rows, actions on the world, and when to look again.

Plain frozen data. Changes are committed first, in one fenced transaction; only then are actions
carried out. Every action is idempotent and its outcome is the next observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.records import Evidence
from orchestrator.state import AttemptCause, GroupCause, RunCause, Verdict


@dataclass(frozen=True)
class MoveRun:
    """`settle` answers the current wish, so that only a newer one moves a paused run again."""

    cause: RunCause
    reason: str | None = None
    settle: bool = False


@dataclass(frozen=True)
class MakeGroup:
    name: str
    generation: int
    provider: str
    hosts: int
    devices: int


@dataclass(frozen=True)
class MoveGroup:
    name: str
    cause: GroupCause
    detail: str | None = None


@dataclass(frozen=True)
class MakeAttempt:
    number: int
    revision: int
    branch: int
    group: str
    processes: int
    desired_generation: int
    resume_checkpoint: str | None
    resumed_from_step: int
    coordinator: str | None


@dataclass(frozen=True)
class MoveAttempt:
    """A move of the attempt's own machine, except its end."""

    number: int
    cause: AttemptCause


@dataclass(frozen=True)
class EndAttempt:
    """The attempt is known dead (`AttemptCause.ALL_DEAD`), and why."""

    number: int
    verdict: Verdict
    summary: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class OpenIncident:
    """`attempt` is the one that ended, 0 when none was made yet; the store gives the number."""

    attempt: int
    verdict: Verdict
    summary: str
    evidence: tuple[Evidence, ...]
    done: tuple[str, ...]
    needs_person: bool


@dataclass(frozen=True)
class CloseIncident:
    number: int
    closed_by_attempt: int | None


@dataclass(frozen=True)
class PlanLaunch:
    """An agent is about to be started on a host: counted, and its old registration dropped."""

    group: str
    host: int


@dataclass(frozen=True)
class BuryTrainer:
    """The trainer is known dead although nobody told of its exit, and how that is known."""

    attempt: int
    rank: int
    why: str


Change = (
    MoveRun
    | MakeGroup
    | MoveGroup
    | MakeAttempt
    | MoveAttempt
    | EndAttempt
    | OpenIncident
    | CloseIncident
    | PlanLaunch
    | BuryTrainer
)


@dataclass(frozen=True)
class AcquireHosts:
    group: str
    provider: str
    hosts: int
    devices: int


@dataclass(frozen=True)
class LaunchAgent:
    """Start the agent of one host; an agent of an earlier launch there is ended first."""

    group: str
    provider: str
    host: int


@dataclass(frozen=True)
class ReleaseHosts:
    group: str
    provider: str


Action = AcquireHosts | LaunchAgent | ReleaseHosts


@dataclass(frozen=True)
class Plan:
    changes: tuple[Change, ...] = ()
    actions: tuple[Action, ...] = ()
    look_again_at: datetime | None = None
