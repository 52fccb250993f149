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
    Plan,
    PlanLaunch,
    ReleaseHosts,
)
from orchestrator.reconcile.rules import reconcile
from orchestrator.records import (
    Host,
    HostRequest,
    Incident,
    Trainer,
)
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
from worker.protocol import ExitCode

# ---- asking for hosts --------------------------------------------------------------------------


def test_a_queued_run_names_its_hosts_before_it_asks_for_them():
    plan = reconcile(snap(make_run(RunState.QUEUED)))
    assert only(plan, MakeGroup) == MakeGroup("lh-inst-r1-g1", 1, "local", HostRequest(1, 1))
    assert only(plan, MoveRun).cause is RunCause.ADMITTED
    assert plan.actions == (AcquireHosts("lh-inst-r1-g1", "local", HostRequest(1, 1)),)


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
    assert plan.actions == (AcquireHosts(GROUP, "local", HostRequest(1, 1)),)
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


def test_hosts_that_do_not_come_up_pause_the_run_instead_of_a_wait_without_end():
    group = make_group(GroupState.CREATING, up=False)
    seen = snap(make_run(RunState.PROVISIONING), group=group)
    within = seen.now - group.created_at
    plan = reconcile(replace(seen, provision_within=within))
    assert (plan.changes, plan.actions) == ((), ())
    assert plan.look_again_at is not None
    plan = reconcile(replace(seen, provision_within=within - timedelta(seconds=1)))
    incident = only(plan, OpenIncident)
    assert (incident.verdict, incident.needs_person) == (Verdict.PROVISION_FAILED, True)
    assert "not all were up within 0:00:59" in incident.summary
    assert only(plan, MoveRun) == MoveRun(RunCause.GAVE_UP, incident.summary, settle=True)
    up = replace(seen, group=replace(group, up=True), provision_within=timedelta())
    assert reconcile(up).changes == (MoveGroup(GROUP, GroupCause.HOSTS_UP),)


def test_a_provider_that_takes_no_order_pauses_the_run_as_late():
    group = make_group(GroupState.REQUESTED, exists=False)
    seen = snap(make_run(RunState.PROVISIONING), group=group)
    within = seen.now - group.created_at
    plan = reconcile(replace(seen, provision_within=within))
    assert plan.changes == ()
    assert only(plan, AcquireHosts).group == GROUP
    plan = reconcile(replace(seen, provision_within=within - timedelta(seconds=1)))
    incident = only(plan, OpenIncident)
    assert (incident.verdict, incident.needs_person) == (Verdict.PROVISION_FAILED, True)
    assert "it took no order within 0:00:59" in incident.summary
    away = replace(seen, provision_within=within - timedelta(seconds=1), awake_since=ago(1))
    assert reconcile(away).changes == ()


def test_a_control_plane_that_was_away_does_not_blame_the_provider_for_it():
    group = make_group(GroupState.CREATING, up=False, created_at=ago(7200))
    away = snap(make_run(RunState.PROVISIONING), group=group, awake_since=ago(60))
    assert reconcile(away).changes == ()
    assert only(reconcile(replace(away, awake_since=ago(3601), listening_since=ago(3601))), MoveRun)


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


def test_the_time_for_an_agent_to_report_starts_when_its_host_is_up():
    """A cloud may have kept the run in its queue for longer than agents are waited for."""
    run = make_run(RunState.PROVISIONING, state_since=ago(7200))
    host = Host(GROUP, 0, agent_alive=False)
    group = make_group(created_at=ago(7200), ready_at=ago(1))
    state = replace(snap(run, group=group, hosts=(host,)), listening_since=ago(9000))
    assert only(reconcile(state), LaunchAgent).host == 0


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
    run = make_run(state, forked_run="source")
    ready = {"group": make_group(), "hosts": (make_host(),)}
    inherited = replace(make_checkpoint(50, 0), id="fork-s50")
    begun = reconcile(snap(run, **ready, checkpoints=(inherited,)))
    assert only(begun, MakeAttempt).resume_checkpoint == "fork-s50"
    plan = reconcile(snap(run, **ready))
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP
    opened = only(plan, OpenIncident)
    assert opened.needs_person
    assert "fork its source again" in opened.summary


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


def standing_by(*ready: bool, revision: int = 1, elsewhere: bool = False) -> Plan:
    places = ("127.0.0.1:4555", "127.0.0.1:4556" if elsewhere else "127.0.0.1:4555")
    hosts = (
        replace(make_host(index), standby=place, standby_ready=stands)
        for index, (place, stands) in enumerate(zip(places, ready, strict=True))
    )
    used = ended(1, Verdict.CRASHED, coordinator="127.0.0.1:4001", revision=revision)
    run = make_run(RunState.RECOVERING)
    group = make_group(hosts=2)
    return reconcile(snap(run, group=group, attempts=(used,), hosts=tuple(hosts)))


def test_a_gang_begins_where_its_spares_stand_by():
    assert only(standing_by(True, True), MakeAttempt).coordinator == "127.0.0.1:4555"


@pytest.mark.parametrize(
    "plan",
    [
        standing_by(True, False),
        standing_by(False, True),
        standing_by(True, True, elsewhere=True),
        standing_by(True, True, revision=2),
    ],
)
def test_a_gang_begins_anew_unless_all_its_spares_stand_by_for_just_that(plan: Plan):
    assert only(plan, MakeAttempt).coordinator == "127.0.0.1:4000"


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
