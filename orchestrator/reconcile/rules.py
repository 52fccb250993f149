"""The decision itself: from a snapshot of one run to a plan.

Pure: no IO, no clock, no randomness. Each situation has a module of its own, which settles it and
answers a plan; the next snapshot shows what came of it. Level-triggered: deciding twice on the same
facts is harmless.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.reconcile import limits
from orchestrator.reconcile.between import between_attempts
from orchestrator.reconcile.gang import sooner, watch
from orchestrator.reconcile.keeping import given_up
from orchestrator.reconcile.plan import NoteTaken, Plan
from orchestrator.reconcile.proof import differing
from orchestrator.reconcile.resting import over, queued, resting
from orchestrator.reconcile.revising import revisions
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.state import TERMINAL_RUNS, GroupState, RunState


def reconcile(snap: Snapshot) -> Plan:
    """What to do next about one run: first what is known by now, then what follows from it."""
    known = (*_taken(snap), *differing(snap), *revisions(snap))
    if known:
        return Plan(known)
    plan = _decide(snap)
    held = snap.group is not None and snap.group.state is GroupState.READY
    if not plan.changes or (held and snap.run.state in TERMINAL_RUNS):
        # By itself, so that a checkpoint that is needed after all holds nothing else up; but before
        # the hosts of a run that is over are given back, for nobody else would delete its files.
        spare = given_up(snap)
        plan = replace(plan, changes=spare, actions=()) if spare else plan
    return replace(plan, look_again_at=sooner(plan.look_again_at, limits.due(snap)))


def _decide(snap: Snapshot) -> Plan:
    match snap.run.state:
        case RunState.SUCCEEDED | RunState.CANCELLED:
            return over(snap)
        case RunState.PAUSED | RunState.FAILED:
            return resting(snap)
        case RunState.QUEUED:
            return queued(snap)
        case _:
            attempt = snap.current
            return between_attempts(snap) if attempt is None else watch(snap, attempt)


def _taken(snap: Snapshot) -> tuple[NoteTaken, ...]:
    group = snap.group
    if group is None or group.taken is None or group.taken_at is not None:
        return ()
    return (NoteTaken(group.name, group.taken, group.taken_text or ""),)
