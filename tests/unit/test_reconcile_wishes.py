"""What is decided when people want a run to stop, and of runs that rest or are over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.reconcile.plan import (
    CloseIncident,
    EndAttempt,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    ReleaseHosts,
)
from orchestrator.reconcile.rules import reconcile
from orchestrator.records import (
    Incident,
    Trainer,
)
from orchestrator.state import (
    ATTEMPT_TABLE,
    AttemptCause,
    AttemptState,
    Desired,
    GroupCause,
    GroupState,
    RunCause,
    RunState,
    Verdict,
    move,
)
from tests.unit.reconcile_world import (
    GROUP,
    JOB,
    ago,
    ended,
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


@pytest.mark.parametrize("desired", [Desired.PAUSE, Desired.CANCEL])
def test_a_stop_is_asked_for_once(desired):
    state = running(Trainer(1, 0, pid=7))
    plan = reconcile(replace(state, run=make_run(RunState.RUNNING, desired)))
    assert only(plan, MoveAttempt) == MoveAttempt(1, AttemptCause.STOP_ASKED)
    assert only(plan, MoveRun).cause is RunCause.STOP_ASKED
    draining = make_attempt(state=AttemptState.DRAINING)
    again = replace(state, run=make_run(RunState.STOPPING, desired), attempts=(draining,))
    assert reconcile(again).changes == ()


@pytest.mark.parametrize("desired", [Desired.PAUSE, Desired.CANCEL])
@pytest.mark.parametrize(
    ("state", "told"), [(AttemptState.REQUESTED, {}), (AttemptState.STARTING, {"first": True})]
)
def test_a_stop_that_meets_a_trainer_which_has_just_begun_makes_moves_that_exist(
    desired, state, told
):
    attempt = make_attempt(state=state, first_step_at=ago(1) if told else None)
    seen = running(Trainer(1, 0, pid=7), attempts=(attempt,))
    plan = reconcile(replace(seen, run=make_run(RunState.STARTING, desired)))
    moves = [change.cause for change in plan.changes if isinstance(change, MoveAttempt)]
    for cause in moves:
        state = move(ATTEMPT_TABLE, state, cause)
    assert state is AttemptState.DRAINING


@pytest.mark.parametrize(
    ("desired", "verdict", "cause"),
    [
        (Desired.PAUSE, Verdict.PAUSED, RunCause.PAUSED),
        (Desired.CANCEL, Verdict.CANCELLED, RunCause.CANCELLED),
        (Desired.RUN, Verdict.PAUSED, RunCause.PAUSED),
    ],
)
def test_a_drained_gang_settles_the_wish_that_it_obeyed(desired, verdict, cause):
    run = make_run(RunState.STOPPING, desired)
    draining = make_attempt(state=AttemptState.DRAINING)
    state = replace(running(left(ExitCode.DRAINED, drained=True), attempts=(draining,)), run=run)
    assert only(reconcile(state), EndAttempt).verdict is verdict
    after = replace(state, attempts=(ended(1, verdict),))
    settled = only(reconcile(after), MoveRun)
    assert settled.cause is cause
    assert settled.settle is (desired is not Desired.RUN)


def test_a_run_that_completes_while_it_is_asked_to_stop_has_succeeded():
    run = make_run(RunState.STOPPING, Desired.PAUSE)
    draining = make_attempt(state=AttemptState.DRAINING)
    state = running(left(0), attempts=(draining,), checkpoints=(make_checkpoint(JOB.steps),))
    assert only(reconcile(replace(state, run=run)), MoveRun).cause is RunCause.COMPLETED


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.PAUSED, RunState.STOPPING])
def test_a_cancel_closes_the_incident_that_nobody_needs_to_look_at_any_more(state):
    incident = Incident("r1", 4, 1, Verdict.CRASHED, ago(20), "killed", needs_person=True)
    tried = (ended(1, Verdict.CRASHED),)
    run = make_run(state, Desired.CANCEL)
    plan = reconcile(snap(run, attempts=tried, incident=incident))
    assert only(plan, CloseIncident) == CloseIncident(4, None)
    assert only(plan, MoveRun).cause is RunCause.CANCELLED


def test_a_paused_run_releases_its_hosts_and_waits_for_a_newer_wish():
    settled = make_run(RunState.PAUSED, settled_generation=1)
    plan = reconcile(snap(settled, group=make_group()))
    assert plan.changes == (MoveGroup(GROUP, GroupCause.NOT_WANTED),)
    assert plan.actions == (ReleaseHosts(GROUP, "local"),)
    woken = replace(settled, desired_generation=2)
    assert only(reconcile(snap(woken, group=make_group())), MoveRun).cause is RunCause.RESUMED


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED])
def test_an_ended_run_holds_nothing(state):
    run = make_run(state, settled_generation=1)
    plan = reconcile(snap(run, group=make_group()))
    assert plan.actions == (ReleaseHosts(GROUP, "local"),)
    releasing = make_group(GroupState.RELEASING, exists=True)
    assert reconcile(snap(run, group=releasing)).actions == (ReleaseHosts(GROUP, "local"),)
    empty = replace(releasing, exists=False)
    assert reconcile(snap(run, group=empty)).changes == (MoveGroup(GROUP, GroupCause.RELEASED),)
    assert reconcile(snap(run, group=replace(empty, state=GroupState.GONE))).actions == ()
