"""Verdicts while evidence comes in: an attempt that ended a moment ago may have ended otherwise.

Pure. A verdict follows from what is stored, so it is worked out again from all that is known by
now; if it comes out otherwise, it is revised. After five minutes it stands.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.reconcile.budgets import COUNTED
from orchestrator.reconcile.classify import classify, facts_of
from orchestrator.reconcile.evidence import Facts, Finding
from orchestrator.reconcile.following import budget_of, close_incident
from orchestrator.reconcile.plan import Change, MoveRun, OpenBranch, Plan, ReviseVerdict
from orchestrator.reconcile.rollback import back_before
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import HOST_GONE, Attempt, Trainer
from orchestrator.state import (
    RETRY_CLASS,
    AttemptState,
    Desired,
    RunCause,
    RunState,
    Verdict,
)

REVISABLE = timedelta(minutes=5)


def revisions(snap: Snapshot) -> tuple[Change, ...]:
    """The verdicts that the evidence of by now contradicts."""
    found: list[Change] = []
    for attempt in snap.attempts:
        if not _may_change(snap, attempt):
            continue
        finding = classify(_as_of_its_end(facts_of(snap, attempt)))
        if finding.verdict is not attempt.verdict and not finding.weak:
            found.append(
                ReviseVerdict(
                    attempt.number,
                    finding.verdict,
                    finding.summary,
                    finding.evidence,
                    finding.bad_step,
                )
            )
    return tuple(found)


def _may_change(snap: Snapshot, attempt: Attempt) -> bool:
    """Only what evidence decided, not what a person or a limit did."""
    if attempt.state is not AttemptState.ENDED or attempt.ended_at is None:
        return False
    if attempt.verdict is None or RETRY_CLASS[attempt.verdict] not in COUNTED:
        return False
    recent = snap.now - attempt.ended_at <= REVISABLE
    return recent and all(trainer.exited for trainer in snap.gang(attempt))


def _as_of_its_end(facts: Facts) -> Facts:
    """Without what became of trainers that still lived when their host was given up.

    Their agents end them as soon as they are heard of again: that is no cause of anything.
    """
    ended_at = facts.attempt.ended_at
    first = facts.attempt.revised_from or facts.attempt.verdict
    if first is not Verdict.HOST_LOST or ended_at is None:
        return facts
    trainers = (_given_up(t) if _outlived(t, ended_at) else t for t in facts.trainers)
    return replace(facts, trainers=tuple(trainers))


def _outlived(trainer: Trainer, ended_at: datetime) -> bool:
    return trainer.exited_at is not None and trainer.exited_at > ended_at


def _given_up(trainer: Trainer) -> Trainer:
    why = "its host was given up, and it ended after that"
    return replace(
        trainer,
        exit_code=None,
        signal=None,
        killed_by_agent=False,
        killed_for=HOST_GONE,
        why_killed=why,
        failure=None,
        last_lines=(),
        memory_killer=None,
        diverged_step=None,
    )


def goes_on(snap: Snapshot) -> Plan | None:
    """A run that paused by itself over a verdict which was revised since, and is tolerable now."""
    last, incident, run = snap.attempt, snap.incident, snap.run
    waits = run.state is RunState.PAUSED and run.desired is Desired.RUN
    if not waits or run.desired_generation != run.settled_generation:
        return None
    if last is None or last.verdict is None or last.revised_at is None or incident is None:
        return None
    if incident.attempt != last.number or incident.verdict is not last.verdict:
        return None
    finding = Finding(last.verdict, last.summary or "", (), bad_step=last.bad_step)
    if RETRY_CLASS[last.verdict] not in COUNTED or budget_of(snap, last, finding).exhausted:
        return None
    branch = _other_branch(snap, last)
    if branch is None and last.verdict is Verdict.DIVERGED:
        return None
    words = f"attempt {last.number} is now known to have ended otherwise: {last.summary}"
    opened = (branch,) if branch else ()
    return Plan((*opened, *close_incident(snap, None), MoveRun(RunCause.RESUMED, words)))


def _other_branch(snap: Snapshot, last: Attempt) -> OpenBranch | None:
    if last.verdict is not Verdict.DIVERGED or last.bad_step is None:
        return None
    return back_before(snap, last.bad_step)
