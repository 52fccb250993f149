"""A host that is to be left: its run saves, leaves, and takes the next place or waits for one."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.reconcile.plan import (
    EndAttempt,
    MakeGroup,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    ReleaseHosts,
)
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Admission
from orchestrator.state import (
    AttemptCause,
    AttemptState,
    Desired,
    GroupCause,
    GroupState,
    RunCause,
    RunState,
    Verdict,
)
from tests.unit.reconcile_world import (
    JOB,
    ended,
    kinds,
    left,
    make_attempt,
    make_checkpoint,
    make_group,
    make_run,
    only,
    running,
    snap,
)
from worker.protocol import ExitCode

WHY = "gpu1 is drained (a new fan)"
DRAINING = make_attempt(state=AttemptState.DRAINING, stop_asked_at=None)


def test_a_gang_on_the_host_is_asked_to_save_and_leave_once() -> None:
    plan = reconcile(running(leave=WHY))
    assert only(plan, MoveAttempt).cause is AttemptCause.STOP_ASKED
    assert kinds(plan.changes) == ["MoveAttempt"], "the run is neither stopped nor paused"
    assert not reconcile(running(leave=WHY, attempts=(DRAINING,))).changes


def test_its_end_costs_no_budget_and_says_why() -> None:
    gone = left(ExitCode.DRAINED, drained=True)
    parts = {"attempts": (DRAINING,), "checkpoints": (make_checkpoint(90),)}
    plan = reconcile(running(gone, leave=WHY, **parts))
    end, move = only(plan, EndAttempt), only(plan, MoveRun)
    assert end.verdict is Verdict.SUPERSEDED
    assert WHY in end.summary
    assert "saved and left; step 90" in end.summary
    assert move.cause is RunCause.SUPERSEDED
    assert WHY in move.reason
    assert kinds(plan.changes) == ["EndAttempt", "MoveRun"], "no incident: nothing went wrong"


def test_a_drain_that_is_taken_back_meanwhile_pauses_nothing() -> None:
    gone = left(ExitCode.DRAINED, drained=True)
    plan = reconcile(running(gone, attempts=(DRAINING,)))
    assert only(plan, EndAttempt).verdict is Verdict.SUPERSEDED
    assert only(plan, MoveRun).cause is RunCause.SUPERSEDED


def test_a_wish_to_stop_goes_before_it() -> None:
    gone = left(ExitCode.DRAINED, drained=True)
    paused = running(gone, leave=WHY, attempts=(DRAINING,))
    plan = reconcile(replace(paused, run=make_run(RunState.STOPPING, Desired.PAUSE)))
    assert only(plan, EndAttempt).verdict is Verdict.PAUSED


def recovering(**parts: object):
    ends = (ended(1, Verdict.SUPERSEDED, accepted=90),)
    return snap(make_run(RunState.RECOVERING), attempts=ends, **parts)


def test_then_its_hosts_are_given_back() -> None:
    plan = reconcile(recovering(group=make_group(), leave=WHY))
    assert only(plan, MoveGroup).cause is GroupCause.NOT_WANTED
    assert only(plan, ReleaseHosts)


def test_it_goes_on_elsewhere_or_waits() -> None:
    gone = make_group(GroupState.GONE)
    assert only(reconcile(recovering(group=gone)), MakeGroup).generation == 2
    waits = reconcile(recovering(group=gone, admission=Admission(False, WHY)))
    assert not waits.changes
    assert not waits.actions


def test_a_group_that_was_never_up_is_given_back_too() -> None:
    for state in (GroupState.REQUESTED, GroupState.CREATING):
        making = snap(make_run(RunState.PROVISIONING), group=make_group(state), leave=WHY)
        assert only(reconcile(making), MoveGroup).cause is GroupCause.NOT_WANTED


def test_a_pause_keeps_no_host_that_is_to_be_left() -> None:
    policy = JOB.policy.model_copy(update={"hold_seconds": 3600.0})
    rests = snap(make_run(RunState.PAUSED, Desired.PAUSE), group=make_group())
    rests = replace(rests, job=rests.job.model_copy(update={"policy": policy}))
    assert not reconcile(rests).changes
    assert only(reconcile(replace(rests, leave=WHY)), MoveGroup).cause is GroupCause.NOT_WANTED
