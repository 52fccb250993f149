"""What a decision answers: changes of rows, actions on the world, and when to look again.

Plain frozen data. Changes are committed first, in one fenced transaction; only then are actions
carried out. Every action is idempotent and its outcome is the next observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.records import Evidence, HostRequest
from orchestrator.state import AttemptCause, GroupCause, RunCause, Verdict
from worker.protocol import Skip


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
    request: HostRequest
    price_per_hour: float | None = None


@dataclass(frozen=True)
class NoteTaken:
    """The cloud took the group's hosts away: kept, because the probe that saw it will not last."""

    group: str
    notice: str
    text: str


@dataclass(frozen=True)
class MarkHost:
    """Nothing is heard of the host, or something is again: told once each time."""

    group: str
    host: int
    unreachable: bool
    words: str


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
    save_seconds: float | None = None
    save_why: str | None = None


@dataclass(frozen=True)
class MoveAttempt:
    """A move of the attempt's own machine, except its end."""

    number: int
    cause: AttemptCause


@dataclass(frozen=True)
class EndAttempt:
    """The attempt is known dead (`AttemptCause.ALL_DEAD`), and why.

    `bad_step` is the step at which a diverged one was found so.
    """

    number: int
    verdict: Verdict
    summary: str
    evidence: tuple[Evidence, ...]
    bad_step: int | None = None


@dataclass(frozen=True)
class ReviseVerdict:
    """Evidence came in after the attempt had ended, and it says otherwise."""

    number: int
    verdict: Verdict
    summary: str
    evidence: tuple[Evidence, ...]
    bad_step: int | None = None


@dataclass(frozen=True)
class OpenBranch:
    """The run goes on from an older checkpoint, and never trains the batches of `skips`."""

    from_checkpoint: str
    from_step: int
    skips: tuple[Skip, ...]
    reason: str


@dataclass(frozen=True)
class DeleteCheckpoint:
    """Nothing may begin at it from now on; its files go later, at an agent's leisure."""

    checkpoint: str
    step: int
    why: str


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
class TellReplay:
    """An incident that stopped nothing, and is over as it is told: the steps that the attempt
    trained again did not come out as they had."""

    attempt: int
    summary: str
    evidence: tuple[Evidence, ...]
    done: tuple[str, ...]


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
    """The trainer counts as dead although nobody told of its exit, and why.

    `host_gone`: it went with its host, or can not count any more because its host is given up.
    """

    attempt: int
    rank: int
    why: str
    host_gone: bool = False


@dataclass(frozen=True)
class NoteSlow:
    """The host with trainer `rank`, or the run where that is None, trains slowly, and how; `words`
    are None where it is so no more. Told once each time."""

    attempt: int
    rank: int | None
    words: str | None


Change = (
    MoveRun
    | MakeGroup
    | MoveGroup
    | NoteTaken
    | MarkHost
    | MakeAttempt
    | MoveAttempt
    | EndAttempt
    | ReviseVerdict
    | OpenBranch
    | DeleteCheckpoint
    | OpenIncident
    | TellReplay
    | CloseIncident
    | PlanLaunch
    | BuryTrainer
    | NoteSlow
)


@dataclass(frozen=True)
class AcquireHosts:
    group: str
    provider: str
    request: HostRequest


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
