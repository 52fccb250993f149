"""Why a current attempt is asked to leave, and what its end is called then.

Pure. Total over the reasons; the strongest one counts.
"""

from __future__ import annotations

from enum import StrEnum

from orchestrator.reconcile import limits
from orchestrator.reconcile.plan import Change, MoveAttempt, MoveRun
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt
from orchestrator.state import (
    AttemptCause,
    AttemptState,
    Desired,
    RunCause,
    RunState,
    Verdict,
)


class Stop(StrEnum):
    CANCEL = "ending it for the cancel"
    PAUSE = "saving before the pause"
    LIMIT = "saving, because a limit of the spec is reached"
    BRANCH = "ending it for another branch"
    REVISION = "saving before the new revision"
    DRAIN = "saving before its host is left"


VERDICTS = {
    Stop.CANCEL: Verdict.CANCELLED,
    Stop.PAUSE: Verdict.PAUSED,
    Stop.LIMIT: Verdict.OVER_LIMIT,
    Stop.BRANCH: Verdict.SUPERSEDED,
    Stop.REVISION: Verdict.SUPERSEDED,
    Stop.DRAIN: Verdict.SUPERSEDED,
}
REPLACED = frozenset({Stop.BRANCH, Stop.REVISION, Stop.DRAIN})


def why(snap: Snapshot, attempt: Attempt) -> Stop | None:
    """Why the attempt must not go on as it is."""
    match snap.run.desired:
        case Desired.CANCEL:
            return Stop.CANCEL
        case Desired.PAUSE:
            return Stop.PAUSE
        case Desired.RUN:
            pass
    if limits.over(snap) is not None:
        return Stop.LIMIT
    if attempt.branch != snap.run.branch:
        return Stop.BRANCH
    if attempt.revision != snap.run.revision:
        return Stop.REVISION
    if snap.leave is not None and snap.group is not None and attempt.group == snap.group.name:
        return Stop.DRAIN
    return None


def asked(snap: Snapshot, attempt: Attempt) -> tuple[Change, ...]:
    """Asks once; a run whose attempt is only replaced stays as it is until the attempt is down."""
    reason = why(snap, attempt)
    if reason is None:
        return ()
    changes: list[Change] = []
    if attempt.state is not AttemptState.DRAINING:
        changes.append(MoveAttempt(attempt.number, AttemptCause.STOP_ASKED))
    if reason not in REPLACED and snap.run.state is not RunState.STOPPING:
        changes.append(MoveRun(RunCause.STOP_ASKED, reason))
    return tuple(changes)


def wish_words(wish: Desired) -> str:
    return Stop.CANCEL if wish is Desired.CANCEL else Stop.PAUSE
