"""Each situation of one run, and what is decided about it. One hand-built snapshot settles each."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.reconcile.plan import (
    AcquireHosts,
    BuryTrainer,
    CloseIncident,
    EndAttempt,
    LaunchAgent,
    MakeAttempt,
    MakeGroup,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    OpenIncident,
    PlanLaunch,
    ReleaseHosts,
)
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import (
    Attempt,
    Host,
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
    killed,
    kinds,
    left,
    make_attempt,
    make_checkpoint,
    make_group,
    make_host,
    make_run,
    only,
    running,
    snap,
)
from worker.protocol import ExitCode, PolicySpec

# ---- asking for hosts --------------------------------------------------------------------------


def test_a_queued_run_names_its_hosts_before_it_asks_for_them():
    plan = reconcile(snap(make_run(RunState.QUEUED)))
    assert only(plan, MakeGroup) == MakeGroup("lh-inst-r1-g1", 1, "local", 1, 1)
    assert only(plan, MoveRun).cause is RunCause.ADMITTED
    assert plan.actions == (AcquireHosts("lh-inst-r1-g1", "local", 1, 1),)


def test_a_queued_run_waits_until_its_old_hosts_are_given_back():
    group = make_group(GroupState.RELEASING)
    plan = reconcile(snap(make_run(RunState.QUEUED), group=group))
    assert plan.changes == ()
    assert plan.actions == (ReleaseHosts(GROUP, "local"),)
    gone = replace(group, state=GroupState.GONE)
    assert only(reconcile(snap(make_run(RunState.QUEUED), group=gone)), MakeGroup).generation == 2


@pytest.mark.parametrize(
    ("desired", "cause"),
    [(Desired.PAUSE, RunCause.PAUSED), (Desired.CANCEL, RunCause.CANCELLED)],
)
def test_a_queued_run_obeys_a_stop_without_asking_for_anything(desired, cause):
    plan = reconcile(snap(make_run(RunState.QUEUED, desired)))
    assert [change.cause for change in plan.changes] == [cause]
    assert plan.actions == ()


def test_hosts_are_asked_for_again_until_the_provider_knows_of_them():
    lost = make_group(GroupState.REQUESTED, exists=False, up=False)
    plan = reconcile(snap(make_run(RunState.PROVISIONING), group=lost))
    assert plan.changes == ()
    assert plan.actions == (AcquireHosts(GROUP, "local", 1, 1),)
    known = replace(lost, exists=True)
    plan = reconcile(snap(make_run(RunState.PROVISIONING), group=known))
    assert plan.changes == (MoveGroup(GROUP, GroupCause.ASKED),)


def test_a_refusal_pauses_the_run_with_the_providers_own_words():
    group = make_group(GroupState.REQUESTED, exists=False, refused="quota TPUS exceeded")
    plan = reconcile(snap(make_run(RunState.PROVISIONING), group=group))
    incident = only(plan, OpenIncident)
    assert incident.verdict is Verdict.PROVISION_FAILED
    assert incident.needs_person
    assert "quota TPUS exceeded" in incident.summary
    assert only(plan, MoveRun) == MoveRun(RunCause.GAVE_UP, incident.summary, settle=True)


# ---- agents ------------------------------------------------------------------------------------


def test_agents_are_started_on_every_host_that_never_had_one():
    fresh = [Host(GROUP, index, agent_alive=False) for index in range(2)]
    plan = reconcile(
        snap(make_run(RunState.PROVISIONING), group=make_group(hosts=2), hosts=tuple(fresh))
    )
    assert plan.changes == (PlanLaunch(GROUP, 0), PlanLaunch(GROUP, 1))
    assert plan.actions == (LaunchAgent(GROUP, "local", 0), LaunchAgent(GROUP, "local", 1))


def test_an_agent_that_was_just_started_is_given_time():
    host = Host(GROUP, 0, launched_at=ago(2), launches=1, agent_alive=False)
    plan = reconcile(snap(make_run(RunState.PROVISIONING), group=make_group(), hosts=(host,)))
    assert plan.changes == ()
    assert plan.actions == ()
    late = replace(host, launched_at=ago(60))
    plan = reconcile(snap(make_run(RunState.PROVISIONING), group=make_group(), hosts=(late,)))
    assert only(plan, LaunchAgent).host == 0


def test_agents_that_never_report_pause_the_run_instead_of_a_wait_without_end():
    run = make_run(RunState.PROVISIONING, state_since=ago(JOB.policy.start_seconds + 1))
    host = Host(GROUP, 0, launched_at=ago(5), launches=9)
    group = make_group(created_at=ago(3600))
    state = replace(snap(run, group=group, hosts=(host,)), listening_since=ago(3600))
    plan = reconcile(state)
    assert only(plan, OpenIncident).needs_person
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP


def test_the_time_for_an_agent_to_report_starts_when_its_host_fell_silent():
    run = make_run(RunState.RECOVERING, state_since=ago(3600))
    host = make_host(registered_at=None, launched_at=ago(1), last_seen_at=ago(2))
    group = make_group(created_at=ago(7200))
    attempts = (ended(1, Verdict.CRASHED),)
    state = snap(run, group=group, hosts=(host,), attempts=attempts)
    state = replace(state, listening_since=ago(7200))
    assert reconcile(state).changes == ()
    silent = replace(host, last_seen_at=ago(JOB.policy.start_seconds + 1))
    plan = reconcile(replace(state, hosts=(silent,)))
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP


def test_a_control_plane_that_was_away_does_not_blame_the_agents_for_it():
    run = make_run(RunState.PROVISIONING, state_since=ago(86400))
    host = Host(GROUP, 0, launched_at=ago(86400), launches=1, agent_alive=False)
    state = snap(run, group=make_group(created_at=ago(86400)), hosts=(host,))
    plan = reconcile(replace(state, listening_since=ago(1)))
    assert only(plan, LaunchAgent).host == 0


# ---- attempts ----------------------------------------------------------------------------------


def test_the_first_attempt_starts_from_nothing():
    run = make_run(RunState.PROVISIONING)
    plan = reconcile(snap(run, group=make_group(), hosts=(make_host(),)))
    attempt = only(plan, MakeAttempt)
    assert (attempt.number, attempt.resume_checkpoint, attempt.resumed_from_step) == (1, None, 0)
    assert attempt.coordinator is None
    assert only(plan, MoveRun).cause is RunCause.ATTEMPT_MADE


@pytest.mark.parametrize("state", [RunState.PROVISIONING, RunState.RECOVERING])
def test_a_fork_without_its_checkpoint_does_not_begin_at_step_0(state):
    run = make_run(state, forked_checkpoint="a1-s50")
    ready = {"group": make_group(), "hosts": (make_host(),)}
    inherited = replace(make_checkpoint(50, 0), id="fork-s50")
    begun = reconcile(snap(run, **ready, checkpoints=(inherited,)))
    assert only(begun, MakeAttempt).resume_checkpoint == "fork-s50"
    plan = reconcile(snap(run, **ready))
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP
    opened = only(plan, OpenIncident)
    assert opened.needs_person
    assert "a1-s50" in opened.summary


def test_a_gang_gets_a_coordinator_port_that_the_gang_before_did_not_use():
    hosts = (make_host(0), make_host(1))
    group = make_group(hosts=2)
    used = ended(1, Verdict.CRASHED, coordinator="127.0.0.1:4000")
    parts = {"group": group, "attempts": (used,), "hosts": hosts}
    plan = reconcile(snap(make_run(RunState.RECOVERING), **parts))
    assert plan.changes == ()
    assert plan.look_again_at is not None
    parts["hosts"] = (replace(hosts[0], free_port=4999), hosts[1])
    plan = reconcile(snap(make_run(RunState.RECOVERING), **parts))
    assert only(plan, MakeAttempt).coordinator == "127.0.0.1:4999"


def test_a_new_attempt_starts_from_the_newest_usable_checkpoint():
    plan = reconcile(
        snap(
            make_run(RunState.RECOVERING),
            attempts=(ended(1, Verdict.CRASHED, accepted=75),),
            group=make_group(),
            hosts=(make_host(),),
            checkpoints=(make_checkpoint(75), make_checkpoint(50)),
        )
    )
    attempt = only(plan, MakeAttempt)
    assert (attempt.number, attempt.resume_checkpoint) == (2, "a1-s75")
    assert attempt.resumed_from_step == 75


def test_nothing_is_started_while_an_attempt_is_current():
    for state in AttemptState:
        if state is AttemptState.ENDED:
            continue
        plan = reconcile(running(Trainer(1, 0), attempts=(make_attempt(state=state),)))
        assert "MakeAttempt" not in kinds(plan.changes)


def test_an_attempt_moves_with_what_is_told_of_it():
    requested = make_attempt(state=AttemptState.REQUESTED)
    plan = reconcile(running(Trainer(1, 0, pid=7), attempts=(requested,)))
    assert plan.changes == (MoveAttempt(1, AttemptCause.SPAWNED),)
    starting = make_attempt(state=AttemptState.STARTING, first_step_at=ago(1))
    state = running(Trainer(1, 0, pid=7), attempts=(starting,))
    plan = reconcile(replace(state, run=make_run(RunState.STARTING)))
    assert [change.cause for change in plan.changes] == [
        AttemptCause.FIRST_STEP,
        RunCause.FIRST_STEP,
    ]


def test_the_first_step_of_a_later_attempt_closes_the_incident():
    incident = Incident("r1", 4, 1, Verdict.CRASHED, ago(20), "killed")
    second = make_attempt(2, first_step_at=ago(0.5))
    state = running(Trainer(2, 0, pid=7), attempts=(ended(1, Verdict.CRASHED), second))
    plan = reconcile(replace(state, incident=incident, run=make_run(RunState.RECOVERING)))
    assert only(plan, CloseIncident) == CloseIncident(4, 2)
    assert only(plan, MoveRun).cause is RunCause.FIRST_STEP


# ---- ends --------------------------------------------------------------------------------------


def test_a_killed_trainer_is_a_crash_that_is_restarted_in_place():
    plan = reconcile(running(killed(), checkpoints=(make_checkpoint(75),)))
    end = only(plan, EndAttempt)
    assert end.verdict is Verdict.CRASHED
    assert "SIGKILL" in end.summary
    assert "step 90" in end.summary
    assert end.evidence[0].source == "agent of host 0"
    assert only(plan, OpenIncident).needs_person is False
    assert only(plan, MoveRun).cause is RunCause.ATTEMPT_LOST
    assert plan.actions == ()


def test_one_rank_down_does_not_end_the_attempt_while_another_lives():
    parts = {
        "attempts": (make_attempt(processes=2, first_step_at=ago(3)),),
        "group": make_group(hosts=2),
        "hosts": (make_host(0), make_host(1, trainer_alive=True)),
    }
    plan = reconcile(running(killed(0), Trainer(1, 1, pid=8), **parts))
    assert "EndAttempt" not in kinds(plan.changes)


def test_a_siblings_abort_is_a_consequence_of_the_killed_rank():
    parts = {
        "attempts": (make_attempt(processes=2, first_step_at=ago(3)),),
        "group": make_group(hosts=2),
        "hosts": (make_host(0), make_host(1)),
    }
    first_to_go = left(ExitCode.PEER_LOST, rank=0, seconds_ago=0.4)
    plan = reconcile(running(first_to_go, killed(1, seconds_ago=0.3), **parts))
    assert "host 1 was killed by SIGKILL" in only(plan, EndAttempt).summary


def test_a_collective_abort_waits_for_its_cause_but_not_for_ever():
    parts = {
        "attempts": (make_attempt(processes=2, first_step_at=ago(30)),),
        "group": make_group(hosts=2),
        "hosts": (make_host(0), make_host(1)),
    }
    aborted = [killed(rank, signal.SIGABRT, seconds_ago=1) for rank in range(2)]
    plan = reconcile(running(*aborted, **parts))
    assert plan.changes == ()
    assert plan.look_again_at == ago(1) + timedelta(seconds=5)
    old = [replace(trainer, exited_at=ago(6)) for trainer in aborted]
    assert only(reconcile(running(*old, **parts)), EndAttempt).verdict is Verdict.CRASHED


@pytest.mark.parametrize(
    ("trainer", "verdict"),
    [
        (left(1), Verdict.CRASHED),
        (left(0), Verdict.UNKNOWN),
        (left(ExitCode.STORAGE_FAILED), Verdict.STORAGE_FAILED),
        (left(ExitCode.CHECKPOINT_REJECTED), Verdict.STORAGE_FAILED),
        (left(ExitCode.DRAINED, drained=True), Verdict.PREEMPTED),
        (left(ExitCode.DIVERGED), Verdict.DIVERGED),
        (left(ExitCode.INVALID), Verdict.INVALID),
        (left(1, failure="RESOURCE_EXHAUSTED: Out of memory"), Verdict.OUT_OF_MEMORY),
        (killed(by=signal.SIGSEGV), Verdict.CRASHED),
    ],
)
def test_exits_become_verdicts(trainer, verdict):
    assert only(reconcile(running(trainer)), EndAttempt).verdict is verdict


def test_a_run_that_can_never_work_fails_at_once():
    plan = reconcile(running(left(ExitCode.INVALID, failure="the text is too short")))
    assert only(plan, MoveRun).cause is RunCause.INVALID
    assert "the text is too short" in only(plan, OpenIncident).summary


def test_divergence_asks_a_person():
    plan = reconcile(running(left(ExitCode.DIVERGED)))
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP
    assert only(plan, OpenIncident).needs_person


def test_a_run_is_complete_only_with_its_last_step_accepted():
    plan = reconcile(running(left(0), checkpoints=(make_checkpoint(JOB.steps),)))
    assert only(plan, EndAttempt).verdict is Verdict.COMPLETED
    assert only(plan, MoveRun).cause is RunCause.COMPLETED
    plan = reconcile(running(left(0), checkpoints=(make_checkpoint(JOB.steps - 1),)))
    assert only(plan, EndAttempt).verdict is Verdict.UNKNOWN


# ---- agents that die ---------------------------------------------------------------------------


def test_a_trainer_that_died_with_its_agent_is_buried_and_the_agent_replaced():
    dead = make_host(agent_alive=False, trainer_alive=False, running_attempt=1)
    plan = reconcile(running(Trainer(1, 0, pid=7, last_step=12), hosts=(dead,)))
    assert only(plan, BuryTrainer).rank == 0
    assert only(plan, LaunchAgent).host == 0
    assert "EndAttempt" not in kinds(plan.changes)


@pytest.mark.parametrize("trainer_alive", [True, None])
def test_a_trainer_is_not_buried_before_it_is_known_dead(trainer_alive):
    dead = make_host(agent_alive=False, trainer_alive=trainer_alive, running_attempt=1)
    plan = reconcile(running(Trainer(1, 0, pid=7), hosts=(dead,)))
    assert "BuryTrainer" not in kinds(plan.changes)


def test_a_trainer_of_a_replaced_agent_is_buried():
    back = make_host(registered_at=ago(1), running_attempt=None)
    plan = reconcile(running(Trainer(1, 0, pid=7), hosts=(back,)))
    assert "replaced" in only(plan, BuryTrainer).why


def test_an_agent_that_never_reports_is_replaced_while_its_gang_still_runs():
    parts = {
        "attempts": (make_attempt(processes=2, first_step_at=ago(30)),),
        "group": make_group(hosts=2),
    }
    stuck = make_host(1, instance=None, registered_at=None, launched_at=ago(20))
    hosts = (make_host(0, running_attempt=1, trainer_alive=True), stuck)
    trainers = (Trainer(1, 0, pid=7), Trainer(1, 1, pid=8))
    plan = reconcile(running(*trainers, hosts=hosts, **parts))
    assert only(plan, LaunchAgent).host == 1
    assert only(plan, BuryTrainer).rank == 1
    living = (hosts[0], replace(stuck, trainer_alive=True))
    plan = reconcile(running(*trainers, hosts=living, **parts))
    assert kinds(plan.changes) == ["PlanLaunch"]


def test_an_unprobed_host_is_left_alone():
    unknown = make_host(agent_alive=None, trainer_alive=None, running_attempt=1)
    plan = reconcile(running(Trainer(1, 0, pid=7), hosts=(unknown,)))
    assert plan.changes == ()
    assert plan.actions == ()


# ---- wishes ------------------------------------------------------------------------------------


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


# ---- budgets -----------------------------------------------------------------------------------


def crash_again(*before: Attempt) -> Snapshot:
    number = len(before) + 1
    current = make_attempt(number, first_step_at=ago(3))
    return running(replace(killed(), attempt=number), attempts=(*before, current))


def test_crashes_without_progress_end_in_a_pause_that_says_what_was_tried():
    allowed = JOB.policy.max_crashes
    before = [ended(number, Verdict.CRASHED) for number in range(1, allowed + 1)]
    last = reconcile(crash_again(*before[:-1]))
    assert only(last, MoveRun).cause is RunCause.ATTEMPT_LOST
    over = reconcile(crash_again(*before))
    assert only(over, MoveRun).cause is RunCause.GAVE_UP
    assert f"Restarted {allowed} times" in only(over, OpenIncident).done[0]


def test_progress_resets_the_budget_and_a_resume_does_too():
    allowed = JOB.policy.max_crashes
    before = [ended(number, Verdict.CRASHED) for number in range(1, allowed + 1)]
    moved = [*before[:-1], replace(before[-1], accepted_step=10)]
    assert only(reconcile(crash_again(*moved)), MoveRun).cause is RunCause.ATTEMPT_LOST
    old_wish = [replace(attempt, desired_generation=0) for attempt in before]
    assert only(reconcile(crash_again(*old_wish)), MoveRun).cause is RunCause.ATTEMPT_LOST


def test_an_older_step_accepted_again_is_no_progress():
    allowed = JOB.policy.max_crashes
    first = ended(1, Verdict.CRASHED, accepted=50)
    rest = [ended(n, Verdict.CRASHED, accepted=50) for n in range(2, allowed + 1)]
    assert only(reconcile(crash_again(first, *rest)), MoveRun).cause is RunCause.GAVE_UP


def test_lost_hosts_have_a_budget_of_their_own():
    allowed = JOB.policy.max_crashes
    before = [ended(number, Verdict.PREEMPTED) for number in range(1, allowed + 3)]
    assert only(reconcile(crash_again(*before)), MoveRun).cause is RunCause.ATTEMPT_LOST


def test_running_out_of_memory_is_tried_once():
    words = {"failure": "MemoryError", "signal": None, "exit_code": 1}
    first = reconcile(running(killed(**words)))
    assert only(first, MoveRun).cause is RunCause.ATTEMPT_LOST
    second = make_attempt(2, first_step_at=ago(1))
    again = running(killed(**words, attempt=2), attempts=(ended(1, Verdict.OUT_OF_MEMORY), second))
    assert only(reconcile(again), MoveRun).cause is RunCause.GAVE_UP


def test_the_first_restart_is_immediate_and_later_ones_wait_longer_each_time():
    policy = PolicySpec(backoff_seconds=4, max_backoff_seconds=10, max_crashes=9)
    waits = []
    for ends in range(1, 6):
        attempts = tuple(ended(n, Verdict.CRASHED) for n in range(1, ends + 1))
        state = snap(
            make_run(RunState.RECOVERING),
            attempts=attempts,
            group=make_group(),
            hosts=(make_host(),),
        )
        plan = reconcile(replace(state, job=JOB.model_copy(update={"policy": policy})))
        due = plan.look_again_at
        waits.append((due - ago(1)).total_seconds() if due else 0.0)
    assert waits[0] == 0
    assert 2 <= waits[1] <= 4
    assert 4 <= waits[2] <= 8
    assert all(5 <= wait <= 10 for wait in waits[3:])


def test_a_persons_resume_does_not_wait_for_the_backoff():
    attempts = tuple(ended(n, Verdict.CRASHED) for n in range(1, 5))
    parts = {"attempts": attempts, "group": make_group(), "hosts": (make_host(),)}
    waiting = reconcile(snap(make_run(RunState.RECOVERING), **parts))
    assert waiting.changes == ()
    resumed = make_run(RunState.PROVISIONING, desired_generation=3)
    assert only(reconcile(snap(resumed, **parts)), MakeAttempt).number == 5


def test_running_out_of_memory_spends_the_budget_of_crashes_too():
    """Invariant 14: one end out of memory is tolerated, but not beyond the crashes that are."""
    second = make_attempt(2, AttemptState.RUNNING)
    oom = killed(attempt=2, last_lines=("Out of memory: Killed process",))
    state = running(oom, attempts=(ended(1, Verdict.CRASHED), second))
    once = state.job.model_copy(update={"policy": PolicySpec(max_crashes=1)})
    assert only(reconcile(replace(state, job=once)), MoveRun).cause is RunCause.GAVE_UP
    assert only(reconcile(state), MoveRun).cause is RunCause.ATTEMPT_LOST
