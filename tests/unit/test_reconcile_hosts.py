"""Silent, lost, held and unfit hosts, and what a limit or another revision does to a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.reconcile.plan import (
    AcquireHosts,
    BuryTrainer,
    EndAttempt,
    LaunchAgent,
    MakeAttempt,
    MakeGroup,
    MarkHost,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    OpenBranch,
    OpenIncident,
    ReleaseHosts,
)
from orchestrator.reconcile.rollback import skips
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Admission
from orchestrator.records import HOST_GONE, HostRequest, Trainer
from orchestrator.state import (
    AttemptCause,
    AttemptState,
    CheckpointState,
    Desired,
    GroupCause,
    GroupState,
    RunCause,
    RunState,
    Verdict,
)
from tests.unit.reconcile_world import (
    GROUP,
    NOW,
    ago,
    ended,
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
from worker.protocol import DataPlan, ExitCode, HostsSpec, Notice, PolicySpec, Skip, SshHosts


def with_policy(state, **policy):
    job = state.job.model_copy(update={"policy": PolicySpec(**policy)})
    return replace(state, job=job)


# ---- silence (invariant 11) --------------------------------------------------------------------


def silent(seconds: float, alive: bool | None, trainer: bool | None = None, **parts: object):
    """A host that was last heard of so long ago, and what its probe says."""
    host = make_host(
        last_seen_at=ago(seconds), agent_alive=alive, trainer_alive=trainer, running_attempt=1
    )
    state = running(Trainer(1, 0, pid=7, last_step=90), hosts=(host,), **parts)
    return replace(state, listening_since=ago(3600))


def buried(state) -> list[BuryTrainer]:
    return [one for one in reconcile(state).changes if isinstance(one, BuryTrainer)]


@pytest.mark.parametrize(
    ("seconds", "alive", "trainer", "lost"),
    [
        (29, False, None, False),
        (31, False, None, True),
        (31, False, True, False),
        (31, None, None, False),
        (299, None, None, False),
        (301, None, None, True),
        (31, True, True, False),
        (86400, True, True, False),
        (86400, True, None, False),
    ],
)
def test_a_host_is_lost_by_time_and_failed_probes_together(seconds, alive, trainer, lost) -> None:
    found = buried(silent(seconds, alive, trainer))
    assert bool(found) is lost
    if lost:
        assert found[0].host_gone
        assert "nothing was heard of it" in found[0].why


@pytest.mark.parametrize(("seconds", "lost"), [(299, False), (301, True)])
def test_a_silent_host_between_two_attempts_is_lost_where_nobody_can_tell(
    seconds: float, lost: bool
) -> None:
    """Its port is the one that the gang before used: no heartbeat will bring another."""
    hosts = (make_host(0, last_seen_at=ago(seconds), agent_alive=None), make_host(1))
    used = ended(1, Verdict.SUPERSEDED, coordinator="127.0.0.1:4000")
    group = make_group(hosts=2)
    state = snap(make_run(RunState.RECOVERING), group=group, attempts=(used,), hosts=hosts)
    plan = reconcile(replace(state, listening_since=ago(3600)))
    assert kinds(plan.changes) == (["MoveGroup", "OpenIncident"] if lost else [])
    if lost:
        assert only(plan, MoveGroup).cause is GroupCause.HOSTS_LOST
        assert only(plan, OpenIncident).verdict is Verdict.HOST_LOST


@pytest.mark.parametrize("field", ["listening_since", "awake_since"])
def test_a_control_plane_that_did_not_listen_all_that_while_gives_nobody_up(field) -> None:
    state = silent(3600, False)
    assert buried(state)
    assert not buried(replace(state, **{field: ago(10)}))
    assert buried(replace(state, **{field: ago(31)}))


@pytest.mark.parametrize(("seconds", "lost"), [(299, False), (301, True)])
def test_only_the_time_counts_in_which_the_provider_was_asked_and_could_not_tell(
    seconds: float, lost: bool
) -> None:
    """A host that was seen alive while it was cut off is not dead because one probe then failed;
    nor is one that nobody could ask about, because nobody led."""
    state = silent(3600, None)
    assert buried(state)
    alive = replace(state.hosts[0], seen_alive_at=ago(seconds))
    assert bool(buried(replace(state, hosts=(alive,)))) is lost
    assert bool(buried(replace(state, probing_since=ago(seconds)))) is lost
    again = reconcile(replace(state, probing_since=ago(299))).look_again_at
    assert again == ago(-1) + timedelta(milliseconds=1)


def test_what_was_seen_before_the_clock_was_set_back_keeps_no_dead_host() -> None:
    state = silent(3600, None)
    before = replace(state.hosts[0], seen_alive_at=ago(-900))
    assert buried(replace(state, hosts=(before,), probing_since=ago(-900)))


@pytest.mark.parametrize("started", [7200, -3000])
def test_a_dead_host_is_given_up_in_time_after_the_clock_was_set_back(started: float) -> None:
    """What was stamped before that lies in the future, and so may the start of the service."""
    state = replace(silent(-3540, False), listening_since=ago(started))
    assert not buried(replace(state, awake_since=ago(29)))
    assert buried(replace(state, awake_since=ago(31)))
    near = replace(silent(-20, False), listening_since=ago(7200), awake_since=ago(3600))
    assert not buried(near), "clocks of replicas may differ by as much"


def test_a_silent_host_is_told_of_once_and_the_attempt_goes_on() -> None:
    state = silent(31, True, True)
    plan = reconcile(state)
    mark = only(plan, MarkHost)
    assert mark.unreachable
    assert "the attempt goes on" in mark.words
    assert kinds(plan.changes) == ["MarkHost"]
    told = replace(state.hosts[0], unreachable_at=ago(1))
    assert reconcile(replace(state, hosts=(told,))).changes == ()
    heard = replace(told, last_seen_at=ago(0.1))
    assert only(reconcile(replace(state, hosts=(heard,))), MarkHost).unreachable is False


def test_a_silent_host_is_told_of_once_though_the_clock_was_set_back() -> None:
    """What was stamped before that, a sign of life or the mark, lies in the future."""
    state = replace(silent(-3600, True, True), listening_since=ago(9000), awake_since=ago(40))
    assert only(reconcile(state), MarkHost).unreachable
    told = replace(state.hosts[0], unreachable_at=ago(1))
    assert reconcile(replace(state, hosts=(told,))).changes == ()
    before = replace(told, unreachable_at=ago(-3500))
    assert reconcile(replace(state, hosts=(before,))).changes == ()
    heard = replace(before, last_seen_at=ago(1))
    assert only(reconcile(replace(state, hosts=(heard,))), MarkHost).unreachable is False


def test_it_is_looked_at_again_when_its_silence_will_mean_something() -> None:
    assert reconcile(silent(10, True, True)).look_again_at == ago(-20) + timedelta(milliseconds=1)


def test_hosts_that_were_taken_are_given_up_after_the_same_silence() -> None:
    taken = {"group": make_group(taken=Notice.PREEMPTED, taken_at=ago(60))}
    assert not buried(silent(29, True, None, **taken))
    assert buried(silent(31, None, None, **taken))
    assert buried(silent(31, True, False, **taken))


def test_a_trainer_that_is_seen_alive_on_taken_hosts_is_not_given_up() -> None:
    """The cloud may take one host of several, and a clock that jumps makes the others silent."""
    taken = {"group": make_group(taken=Notice.PREEMPTED, taken_at=ago(60))}
    assert not buried(silent(3600, True, True, **taken))
    assert not buried(silent(3600, None, True, **taken))


def test_the_lost_host_ends_the_attempt_and_takes_the_group_with_it() -> None:
    gone = Trainer(1, 0, pid=7, exited_at=ago(0), killed_for=HOST_GONE, why_killed="silent")
    plan = reconcile(running(gone))
    assert only(plan, EndAttempt).verdict is Verdict.HOST_LOST
    assert only(plan, MoveGroup).cause is GroupCause.HOSTS_LOST


def test_nothing_starts_before_the_lost_hosts_are_confirmed_gone() -> None:
    """Invariant 1: a trainer that is cut off may live on there."""
    state = snap(
        make_run(RunState.RECOVERING),
        attempts=(ended(1, Verdict.HOST_LOST),),
        group=make_group(GroupState.RELEASING, exists=True),
    )
    plan = reconcile(state)
    assert plan.changes == ()
    assert plan.actions == (ReleaseHosts(GROUP, "local"),)
    group = replace(state.group, state=GroupState.GONE, exists=False)
    plan = reconcile(replace(state, group=group))
    assert only(plan, MakeGroup).generation == 2


def test_vanished_hosts_of_an_attempt_are_lost_and_not_a_crash() -> None:
    state = running(Trainer(1, 0, pid=7), group=make_group(exists=False))
    assert buried(state)[0].host_gone


# ---- hosts without an attempt ------------------------------------------------------------------


def idle(**group: object):
    return snap(
        make_run(RunState.PROVISIONING),
        group=make_group(**group),
        hosts=(make_host(),),
    )


@pytest.mark.parametrize("lost", [{"exists": False}, {"taken": Notice.PREEMPTED, "taken_at": NOW}])
def test_hosts_that_go_before_an_attempt_cost_the_budget_of_hosts(lost) -> None:
    plan = reconcile(idle(**lost))
    assert only(plan, MoveGroup).cause is GroupCause.HOSTS_LOST
    assert not only(plan, OpenIncident).needs_person
    over = reconcile(with_policy(idle(**lost), max_host_losses=0))
    assert only(over, MoveRun).cause is RunCause.GAVE_UP
    assert "policy.max_host_losses" in " ".join(only(over, OpenIncident).done)


def test_hosts_that_are_taken_before_they_were_all_up_are_lost_too() -> None:
    group = make_group(GroupState.CREATING, up=False, taken=Notice.PREEMPTED, taken_at=NOW)
    plan = reconcile(snap(make_run(RunState.PROVISIONING), group=group))
    assert only(plan, MoveGroup).cause is GroupCause.HOSTS_LOST
    assert only(plan, OpenIncident).verdict is Verdict.PREEMPTED


def test_a_host_with_a_notice_starts_nothing() -> None:
    noticed = make_host(notice=Notice.MAINTENANCE, notice_at=ago(1))
    plan = reconcile(replace(idle(), hosts=(noticed,)))
    assert only(plan, OpenIncident).verdict is Verdict.MAINTENANCE
    assert "MakeAttempt" not in kinds(plan.changes)


def lost_group(generation: int, **changes: object):
    name = f"lh-inst-r1-g{generation}"
    group = make_group(GroupState.GONE, lost_in_wish=1, released_at=ago(0.5), **changes)
    return replace(group, name=name, generation=generation)


def test_lost_groups_count_in_a_row_until_a_person_resumes() -> None:
    before = tuple(lost_group(n) for n in (1, 2))
    group = replace(make_group(exists=False), name="lh-inst-r1-g3", generation=3)
    state = snap(make_run(RunState.PROVISIONING), group=group, groups=(*before, group))
    state = with_policy(state, max_host_losses=2)
    assert only(reconcile(state), MoveRun).cause is RunCause.GAVE_UP
    resumed = replace(state, run=make_run(RunState.PROVISIONING, desired_generation=2))
    assert not only(reconcile(resumed), OpenIncident).needs_person


def test_lost_groups_are_asked_for_again_after_a_growing_wait() -> None:
    groups = tuple(lost_group(n) for n in range(1, 5))
    state = snap(make_run(RunState.PROVISIONING), group=groups[-1], groups=groups)
    waits = reconcile(with_policy(state, backoff_seconds=10)).look_again_at
    assert waits is not None
    assert ago(0.5) + timedelta(seconds=20) <= waits <= ago(0.5) + timedelta(seconds=40)
    first = replace(state, group=groups[0], groups=groups[:1])
    assert only(reconcile(first), AcquireHosts).group == "lh-inst-r1-g2"


def test_a_launch_that_is_refused_for_good_is_told_at_once() -> None:
    state = replace(idle(refused="no such image"), hosts=(make_host(registered_at=None),))
    plan = reconcile(state)
    assert "no such image" in only(plan, OpenIncident).summary
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP


def test_hosts_that_do_not_fit_the_revision_are_given_back_first() -> None:
    state = idle()
    wider = state.job.hosts.model_copy(update={"count": 2})
    plan = reconcile(replace(state, job=state.job.model_copy(update={"hosts": wider})))
    assert plan.changes == (MoveGroup(GROUP, GroupCause.NOT_WANTED),)


def test_hosts_that_were_asked_for_in_other_words_do_not_fit() -> None:
    state = idle(provider="ssh", section=SshHosts(labels={"room": "a"}))
    wanted = HostsSpec(provider="ssh", ssh=SshHosts(labels={"room": "b"}))
    state = replace(state, job=state.job.model_copy(update={"hosts": wanted}))
    assert reconcile(state).changes == (MoveGroup(GROUP, GroupCause.NOT_WANTED),)
    fitting = replace(state, group=replace(state.group, section=wanted.section))
    assert MoveGroup(GROUP, GroupCause.NOT_WANTED) not in reconcile(fitting).changes
    gone = replace(state, group=replace(state.group, state=GroupState.GONE))
    asked = HostRequest(1, 1, wanted.ssh)
    assert only(reconcile(gone), MakeGroup).request == asked
    assert only(reconcile(gone), AcquireHosts).request == asked


def test_a_run_asks_for_hosts_when_it_is_its_turn() -> None:
    state = snap(make_run(RunState.QUEUED), price_per_hour=2.5)
    waiting = replace(state, admission=Admission(False, "two other runs"))
    assert reconcile(waiting).changes == ()
    assert only(reconcile(state), MakeGroup).price_per_hour == 2.5
    never = replace(state, admission=Admission(False, never="the limit is 1 host"))
    assert only(reconcile(never), MoveRun).cause is RunCause.GAVE_UP


# ---- the hold of a pause (invariant 5) ---------------------------------------------------------


def held(seconds_ago: float = 10, **parts: object):
    run = make_run(
        RunState.PAUSED, Desired.PAUSE, state_since=ago(seconds_ago), settled_generation=1
    )
    return snap(
        run,
        group=make_group(),
        hosts=(make_host(),),
        provider_hold=timedelta(seconds=60),
        **parts,
    )


def test_a_pause_keeps_its_hosts_for_the_hold_and_no_longer() -> None:
    plan = reconcile(held())
    assert (plan.changes, plan.actions) == ((), ())
    assert plan.look_again_at == ago(-50)
    assert reconcile(held(60)).actions == (ReleaseHosts(GROUP, "local"),)


def test_the_spec_has_the_last_word_about_the_hold() -> None:
    assert reconcile(with_policy(held(), hold_seconds=0)).actions
    assert not reconcile(with_policy(held(100), hold_seconds=200)).actions


def test_nothing_holds_hosts_after_a_cancel_or_when_a_person_is_needed() -> None:
    cancel = replace(held(), run=make_run(RunState.CANCELLED, Desired.CANCEL))
    gave_up = replace(held(), run=make_run(RunState.PAUSED, settled_generation=1))
    failed = replace(held(), run=make_run(RunState.FAILED, settled_generation=1))
    noticed = replace(held(), hosts=(make_host(notice=Notice.PREEMPTED, notice_at=ago(1)),))
    for state in (cancel, gave_up, failed, noticed):
        assert reconcile(state).actions == (ReleaseHosts(GROUP, "local"),)


def test_a_resume_within_the_hold_starts_at_once_on_the_same_hosts() -> None:
    woken = replace(held(), run=make_run(RunState.PAUSED, desired_generation=2))
    assert only(reconcile(woken), MoveRun).cause is RunCause.RESUMED
    queued = replace(woken, run=make_run(RunState.QUEUED, desired_generation=2))
    queued = replace(queued, admission=Admission(False, "others"))
    plan = reconcile(queued)
    assert only(plan, MoveRun).cause is RunCause.ADMITTED
    assert plan.actions == ()
    starting = replace(queued, run=make_run(RunState.PROVISIONING, desired_generation=2))
    assert only(reconcile(starting), MakeAttempt).group == GROUP


# ---- limits ------------------------------------------------------------------------------------

LIMITS = [({"max_hours": 2}, {"hours_held": 2.0}), ({"max_cost": 5}, {"cost": 5.0})]


@pytest.mark.parametrize(("policy", "used"), LIMITS)
def test_a_limit_drains_the_attempt_and_then_asks_with_the_arithmetic(policy, used) -> None:
    state = with_policy(running(Trainer(1, 0, pid=7)), **policy)
    assert "MoveAttempt" not in kinds(reconcile(state).changes)
    over = replace(state, **used)
    plan = reconcile(over)
    assert only(plan, MoveAttempt).cause is AttemptCause.STOP_ASKED
    assert only(plan, MoveRun).cause is RunCause.STOP_ASKED
    draining = make_attempt(state=AttemptState.DRAINING)
    down = replace(
        over,
        run=make_run(RunState.STOPPING),
        attempts=(draining,),
        trainers=(left(ExitCode.DRAINED, drained=True),),
    )
    end = only(reconcile(down), EndAttempt)
    assert end.verdict is Verdict.OVER_LIMIT
    settled = replace(down, attempts=(ended(1, Verdict.OVER_LIMIT),))
    plan = reconcile(settled)
    incident = only(plan, OpenIncident)
    assert incident.needs_person
    assert next(iter(policy)) in incident.summary
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP


@pytest.mark.parametrize(("policy", "used"), LIMITS)
@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.PROVISIONING, RunState.RECOVERING])
def test_nothing_starts_over_a_limit(policy, used, state) -> None:
    plan = reconcile(with_policy(snap(make_run(state), **used), **policy))
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP
    assert not plan.actions


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.PROVISIONING, RunState.RECOVERING])
def test_a_fork_without_a_usable_checkpoint_never_starts_from_nothing(state) -> None:
    fork = make_run(state, forked_run="r0")
    ready = snap(fork, group=make_group(), hosts=(make_host(),))
    plan = reconcile(ready)
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP
    assert only(plan, OpenIncident).needs_person
    assert not plan.actions
    good = replace(ready, checkpoints=(make_checkpoint(3, attempt=0),))
    assert "OpenIncident" not in kinds(reconcile(good).changes)


def test_a_limit_is_looked_at_again_when_it_will_be_reached() -> None:
    used = {"hours_held": 1.0, "cost": 9.0, "group": make_group(price_per_hour=10.0)}
    state = running(Trainer(1, 0, pid=7), **used)
    state = replace(state, hosts=(make_host(last_seen_at=NOW, running_attempt=1),))
    near = reconcile(with_policy(state, max_hours=1.001)).look_again_at
    assert near == NOW + timedelta(hours=0.001)
    assert reconcile(with_policy(state, max_cost=9.01)).look_again_at == NOW + timedelta(
        hours=0.001
    )


def test_ends_of_all_classes_together_have_a_bound() -> None:
    verdicts = (Verdict.CRASHED, Verdict.PREEMPTED, Verdict.HUNG)
    before = [ended(n, verdict) for n, verdict in enumerate(verdicts, 1)]
    current = make_attempt(4, first_step_at=ago(3))
    trainer = left(1, attempt=4)
    state = with_policy(running(trainer, attempts=(*before, current)), max_ends=3)
    incident = only(reconcile(state), OpenIncident)
    assert incident.needs_person
    told = " ".join(incident.done)
    assert "policy.max_ends" in told
    assert "Attempt 2, from step 0: preempted" in told
    more = with_policy(state, max_ends=4)
    assert not only(reconcile(more), OpenIncident).needs_person


# ---- another revision, another branch ----------------------------------------------------------


@pytest.mark.parametrize("change", [{"revision": 2}, {"branch": 5}])
def test_an_attempt_of_an_old_revision_or_branch_is_replaced(change) -> None:
    state = running(Trainer(1, 0, pid=7))
    state = replace(state, run=make_run(RunState.RUNNING, **change))
    plan = reconcile(state)
    assert plan.changes == (MoveAttempt(1, AttemptCause.STOP_ASKED),)
    draining = make_attempt(state=AttemptState.DRAINING)
    assert reconcile(replace(state, attempts=(draining,))).changes == ()
    down = replace(state, attempts=(draining,), trainers=(left(75, drained=True),))
    plan = reconcile(down)
    assert only(plan, EndAttempt).verdict is Verdict.SUPERSEDED
    assert only(plan, MoveRun).cause is RunCause.SUPERSEDED
    after = replace(
        down,
        run=make_run(RunState.RECOVERING, **change),
        attempts=(ended(1, Verdict.SUPERSEDED),),
    )
    made = only(reconcile(after), MakeAttempt)
    assert (made.revision, made.branch) == (change.get("revision", 1), change.get("branch", 0))


@pytest.mark.parametrize("change", [{"revision": 2}, {"branch": 5}])
def test_one_that_had_trained_all_of_its_steps_before_it_was_asked_is_no_failure(change) -> None:
    run = make_run(RunState.RUNNING, **change)
    done = replace(running(left(ExitCode.DONE)), run=run)
    end = only(reconcile(done), EndAttempt)
    assert end.verdict is Verdict.SUPERSEDED
    assert "before it was asked" in end.summary
    crashed = replace(running(left(1)), run=run)
    assert only(reconcile(crashed), EndAttempt).verdict is Verdict.CRASHED


def test_a_pause_wins_over_a_new_revision() -> None:
    draining = make_attempt(state=AttemptState.DRAINING)
    state = running(left(75, drained=True), attempts=(draining,))
    state = replace(state, run=make_run(RunState.RUNNING, Desired.PAUSE, revision=2))
    plan = reconcile(state)
    assert only(plan, EndAttempt).verdict is Verdict.PAUSED
    assert only(plan, MoveRun).cause is RunCause.STOP_ASKED


# ---- divergence --------------------------------------------------------------------------------


def diverged(*checkpoints, before=(), **policy: object):
    number = len(before) + 1
    trainer = left(ExitCode.DIVERGED, attempt=number, diverged_step=60, diverged_where="loss")
    current = make_attempt(number, first_step_at=ago(3))
    state = running(trainer, attempts=(*before, current), checkpoints=checkpoints)
    return with_policy(replace(state, data_plan=DataPlan(seed=3)), **policy)


def test_a_diverged_run_goes_back_before_the_trouble_and_skips_the_batches_between() -> None:
    plan = reconcile(diverged(make_checkpoint(75), make_checkpoint(50), make_checkpoint(25)))
    assert only(plan, EndAttempt).bad_step == 60
    branch = only(plan, OpenBranch)
    assert (branch.from_checkpoint, branch.from_step) == ("a1-s50", 50)
    assert [(skip.first, skip.last) for skip in branch.skips] == [(50, 59)]
    assert only(plan, MoveRun).cause is RunCause.ATTEMPT_LOST
    assert not only(plan, OpenIncident).needs_person


def test_of_two_checkpoints_at_one_step_a_verified_one_is_taken() -> None:
    verified = replace(make_checkpoint(50), id="v", state=CheckpointState.VERIFIED)
    later = make_checkpoint(50, attempt=2)
    assert only(reconcile(diverged(later, verified)), OpenBranch).from_checkpoint == "v"


def test_without_an_older_checkpoint_a_person_is_asked() -> None:
    plan = reconcile(diverged(make_checkpoint(60)))
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP
    assert "OpenBranch" not in kinds(plan.changes)


def test_rollbacks_are_limited_and_only_steps_past_the_trouble_give_them_back() -> None:
    start = make_checkpoint(50)
    stuck = [ended(n, Verdict.DIVERGED, accepted=50 + n, bad_step=60) for n in (1, 2)]
    over = reconcile(diverged(start, before=stuck, max_rollbacks=2))
    assert only(over, MoveRun).cause is RunCause.GAVE_UP
    past = [*stuck, ended(3, Verdict.CRASHED, accepted=61)]
    plan = reconcile(diverged(start, before=past, max_rollbacks=2))
    assert only(plan, OpenBranch).from_step == 50


def test_skips_never_overlap_those_that_the_plan_has() -> None:
    old = DataPlan(seed=1, skips=(Skip(first=10, last=19, reason="old"),))
    new = skips(old, 8, 13, "new")
    assert [(skip.first, skip.last) for skip in new] == [(8, 9), (20, 22)]
    grown = DataPlan(seed=1, skips=(*old.skips, *new))
    before = [old.batch_index(step) for step in range(40)]
    after = [grown.batch_index(step) for step in range(40)]
    assert after[:8] == before[:8]
    assert after[8:30] == before[13:35]


# ---- agents of a group that goes ---------------------------------------------------------------


def test_no_agent_is_started_on_hosts_that_are_about_to_go() -> None:
    dead = make_host(agent_alive=False, trainer_alive=None, running_attempt=1)
    state = running(Trainer(1, 0, pid=7), hosts=(dead,))
    assert only(reconcile(state), LaunchAgent)
    taken = make_group(taken=Notice.PREEMPTED, taken_at=ago(5))
    assert reconcile(replace(state, group=taken)).actions == ()


# ---- a database that went back in time ---------------------------------------------------------


@pytest.mark.parametrize("trainer", [Trainer(1, 0), Trainer(1, 0, pid=7, last_step_at=ago(130))])
def test_an_agent_that_lives_and_runs_nothing_ends_the_attempt(trainer: Trainer) -> None:
    """After a restore nobody tells of the end again, or a host refuses a number it had before."""
    begun = make_attempt(created_at=ago(200))
    idle = make_host(registered_at=ago(250), running_attempt=None)
    plan = reconcile(running(trainer, attempts=(begun,), hosts=(idle,)))
    buried = only(plan, BuryTrainer)
    assert (buried.rank, buried.host_gone) == (0, False)
    assert "runs nothing of attempt 1" in buried.why


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ({"last_step_at": ago(60)}, {}),  # its end may be on the way
        ({}, {"running_attempt": 1}),
        ({}, {"trainer_alive": True}),
        ({}, {"spoke_at": ago(90)}),  # it may have been told before the attempt was
        ({}, {"spoke_at": None}),  # an agent of a version that does not say
    ],
)
def test_who_may_still_tell_of_the_end_is_waited_for(
    told: dict[str, object], seen: dict[str, object]
) -> None:
    begun = make_attempt(created_at=ago(200))
    known = {"registered_at": ago(250), "running_attempt": None}
    host = make_host(**known | seen)
    trainer = replace(Trainer(1, 0), **told)  # type: ignore[arg-type]
    plan = reconcile(running(trainer, attempts=(begun,), hosts=(host,)))
    assert "BuryTrainer" not in kinds(plan.changes)


# ---- hosts that have to be asked for again -----------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
def test_hosts_that_were_never_up_are_asked_for_again_and_count_as_no_loss(exists: bool) -> None:
    group = make_group(GroupState.CREATING, exists=exists, up=False, again="the zone is full")
    plan = reconcile(snap(make_run(RunState.PROVISIONING), group=group))
    assert plan.changes == ()
    assert only(plan, AcquireHosts).group == GROUP
    assert plan.look_again_at is not None


def test_hosts_that_are_asked_for_again_and_again_end_with_a_person_and_the_last_words() -> None:
    group = make_group(
        GroupState.CREATING, up=False, again="the zone is full", created_at=ago(7200)
    )
    state = snap(make_run(RunState.PROVISIONING), group=group)
    plan = reconcile(replace(state, listening_since=ago(7200)))
    assert "the zone is full" in only(plan, OpenIncident).summary
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP


def test_hosts_that_were_up_and_are_gone_are_lost_whatever_the_provider_wants() -> None:
    group = make_group(exists=False, up=False, again="nothing has its name")
    plan = reconcile(snap(make_run(RunState.PROVISIONING), group=group, hosts=(make_host(),)))
    assert only(plan, MoveGroup).cause is GroupCause.HOSTS_LOST
