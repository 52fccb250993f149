"""Nothing of the run is wanted now: it waits for its turn, for a person, or for nothing any more.

Pure. Owns the hold: how long a pause keeps its hosts (invariant 5).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.reconcile import limits
from orchestrator.reconcile.evidence import Finding
from orchestrator.reconcile.following import ask, close_incident
from orchestrator.reconcile.hosts import ask_for_hosts, fits, lost_while_idle, release
from orchestrator.reconcile.plan import Change, MoveRun, Plan
from orchestrator.reconcile.revising import goes_on
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Evidence, HostGroup
from orchestrator.state import Desired, GroupState, RunCause, RunState, Verdict


def over(snap: Snapshot) -> Plan:
    """Succeeded or cancelled: nothing is held."""
    return release(snap)


def resting(snap: Snapshot) -> Plan:
    """A paused or failed run: let go of what it holds, and move on only by a newer wish."""
    run = snap.run
    if run.state is RunState.PAUSED and run.desired is Desired.CANCEL:
        return Plan(cancelled(snap, "cancelled"))
    if run.desired is Desired.RUN and run.desired_generation > run.settled_generation:
        return Plan((MoveRun(RunCause.RESUMED, "resumed"),))
    again = goes_on(snap)
    if again is not None:
        return again
    until = _held_until(snap)
    return release(snap) if until is None else Plan(look_again_at=until)


def _held_until(snap: Snapshot) -> datetime | None:
    """Until when a pause that a person wished keeps its hosts, None for no longer."""
    group = snap.group
    if snap.run.state is not RunState.PAUSED or snap.run.desired is not Desired.PAUSE:
        return None
    if group is None or not _keeps_well(snap, group) or limits.over(snap) is not None:
        return None
    until = snap.run.state_since + _hold(snap)
    return until if until > snap.now else None


def _hold(snap: Snapshot) -> timedelta:
    wanted = snap.job.policy.hold_seconds
    if wanted is not None:
        return timedelta(seconds=wanted)
    return snap.provider_hold or timedelta(0)


def _keeps_well(snap: Snapshot, group: HostGroup) -> bool:
    return (
        group.state is GroupState.READY
        and snap.leave is None
        and group.refused is None
        and lost_while_idle(snap, group) is None
        and fits(snap, group)
    )


def cancelled(snap: Snapshot, words: str) -> tuple[Change, ...]:
    """Nobody is needed for an incident of a run that is over."""
    move = MoveRun(RunCause.CANCELLED, words, settle=True)
    return (*close_incident(snap, None), move)


def queued(snap: Snapshot) -> Plan:
    """Hosts that a pause has held count as the run's own: it need not queue for them."""
    match snap.run.desired:
        case Desired.CANCEL:
            return Plan(cancelled(snap, "cancelled before it started"))
        case Desired.PAUSE:
            return Plan((MoveRun(RunCause.PAUSED, "paused before it started", settle=True),))
        case Desired.RUN:
            pass
    limit = limits.over(snap)
    if limit is not None:
        return Plan(ask(snap, _last(snap), limit, "Started nothing."))
    adrift = no_beginning(snap)
    if adrift:
        return Plan(adrift)
    group = snap.group
    if group is not None and group.state is not GroupState.GONE:
        if _keeps_well(snap, group):
            return Plan((MoveRun(RunCause.ADMITTED, "on the hosts that were kept"),))
        return release(snap)
    return ask_for_hosts(snap, MoveRun(RunCause.ADMITTED))


def over_limit(snap: Snapshot) -> tuple[Change, ...]:
    """A limit of the spec is reached, and no attempt is current."""
    limit = limits.over(snap)
    if limit is None:
        return ()
    return ask(snap, _last(snap), limit, "Saved and stopped.")


def no_beginning(snap: Snapshot) -> tuple[Change, ...]:
    """A fork begins at another run's checkpoint: without a usable one it has no beginning at all.

    To start it from nothing would train another run under its name.
    """
    if snap.run.forked_run is None or snap.newest is not None:
        return ()
    words = (
        "no checkpoint of this fork can be used any more, and it has no first step of its own;"
        " fork its source again, at another checkpoint"
    )
    seen = (Evidence(snap.now, "checkpoint ledger", words),)
    finding = Finding(Verdict.STORAGE_FAILED, words, seen)
    return ask(snap, _last(snap), finding, "Started nothing.")


def _last(snap: Snapshot) -> int:
    return snap.attempt.number if snap.attempt else 0
