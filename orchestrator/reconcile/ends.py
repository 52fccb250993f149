"""The gang is down: which end that was, and the moves that follow at once.

Pure. Three ends in this order: the last step is accepted, whatever happened afterwards; it was
asked to leave; it was lost, by the verdict of the evidence.
"""

from __future__ import annotations

from datetime import timedelta

from orchestrator.reconcile import stopping
from orchestrator.reconcile.classify import classify, facts_of
from orchestrator.reconcile.evidence import all_evidence, exits, how_it_ended, name_of
from orchestrator.reconcile.following import close_incident, follow
from orchestrator.reconcile.plan import Change, EndAttempt, MoveRun, Plan
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Checkpoint, Evidence, Trainer
from orchestrator.state import AttemptState, RunCause, RunState, Verdict
from worker.protocol import ExitCode

CAUSE_WAIT = timedelta(seconds=5)


def gang_ended(snap: Snapshot, attempt: Attempt, trainers: list[Trainer]) -> Plan:
    newest = snap.newest
    if newest is not None and newest.step >= snap.job.steps:
        return Plan(_completed(snap, attempt, newest, trainers))
    finished = all(trainer.exit_code == ExitCode.DONE for trainer in trainers)
    # One that is not wanted any more may have trained all of its own steps before it was asked.
    unasked = finished and stopping.why(snap, attempt) is not None
    if attempt.state is AttemptState.DRAINING or unasked:
        return Plan(_obeyed(snap, attempt, trainers))
    finding = classify(facts_of(snap, attempt))
    latest = max(t.exited_at for t in trainers if t.exited_at is not None)
    if finding.weak and len(trainers) > 1 and snap.now < latest + CAUSE_WAIT:
        return Plan(look_again_at=latest + CAUSE_WAIT)
    end = EndAttempt(
        attempt.number, finding.verdict, finding.summary, finding.evidence, finding.bad_step
    )
    return Plan((end, *follow(snap, attempt, finding)))


def _completed(
    snap: Snapshot, attempt: Attempt, last: Checkpoint, trainers: list[Trainer]
) -> tuple[Change, ...]:
    """Nothing is left to train, however the trainers ended after that."""
    summary = f"step {last.step} was trained and its checkpoint accepted"
    ill = [t for t in trainers if t.exit_code != ExitCode.DONE]
    if ill:
        summary += "; after that " + ", ".join(f"{name_of(t)} {how_it_ended(t)}" for t in ill)
    accepted = Evidence(last.accepted_at or snap.now, "checkpoint ledger", f"{last.id} accepted")
    end = EndAttempt(
        attempt.number, Verdict.COMPLETED, summary, (accepted, *exits(trainers, snap.now))
    )
    closing = close_incident(snap, attempt.number)
    return (end, *closing, MoveRun(RunCause.COMPLETED, summary, settle=True))


def _obeyed(snap: Snapshot, attempt: Attempt, trainers: list[Trainer]) -> tuple[Change, ...]:
    """The gang was asked to leave and has left; the run itself settles in the next round."""
    reason = stopping.why(snap, attempt)
    if snap.run.state is RunState.STOPPING and reason in stopping.REPLACED:
        reason = stopping.Stop.PAUSE  # a pause that was taken back while it was obeyed
    if reason is None and snap.run.state is not RunState.STOPPING:
        reason = stopping.Stop.DRAIN  # which was taken back while it was obeyed
    verdict = stopping.VERDICTS[reason or stopping.Stop.PAUSE]
    summary = _left(snap, attempt, trainers)
    if reason is stopping.Stop.DRAIN:
        summary = f"{snap.leave or 'its host was drained, and is not any more'}; {summary}"
    seen = all_evidence(facts_of(snap, attempt))
    end = EndAttempt(attempt.number, verdict, summary, seen)
    if reason in stopping.REPLACED:
        moves = snap.run.state in (RunState.STARTING, RunState.RUNNING)
        return (end, MoveRun(RunCause.SUPERSEDED, f"{reason}: {summary}")) if moves else (end,)
    if snap.run.state is not RunState.STOPPING:
        return (end, MoveRun(RunCause.STOP_ASKED, summary))
    return (end,)


def _left(snap: Snapshot, attempt: Attempt, trainers: list[Trainer]) -> str:
    drained = all(trainer.drained for trainer in trainers)
    newest = snap.newest
    kept = f"step {newest.step} is the newest accepted" if newest else "no step was accepted yet"
    if attempt.state is not AttemptState.DRAINING:
        return f"trained all of its steps before it was asked to stop; {kept}"
    return f"asked to stop; {'saved and left' if drained else 'left without a new save'}; {kept}"
