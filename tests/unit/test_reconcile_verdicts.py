"""The table from evidence to verdicts, line by line, and verdicts that late evidence revises."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.reconcile.classify import (
    EXIT_VERDICTS,
    KILLED_VERDICTS,
    NOTICE_VERDICTS,
    TABLE,
    classify,
    facts_of,
)
from orchestrator.reconcile.plan import (
    CloseIncident,
    EndAttempt,
    MoveGroup,
    MoveRun,
    NoteTaken,
    OpenBranch,
    OpenIncident,
    ReviseVerdict,
)
from orchestrator.reconcile.rules import reconcile
from orchestrator.records import HOST_GONE, Incident
from orchestrator.state import GroupCause, GroupState, RunCause, RunState, Verdict
from tests.unit.reconcile_world import (
    GROUP,
    JOB,
    NOW,
    ago,
    ended,
    killed,
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
from worker.protocol import ExitCode, KilledFor, Notice

KERNEL = "Out of memory: Killed process 7 (python) total-vm:9kB"
NOTICED = {"notice": Notice.PREEMPTED, "notice_at": ago(1), "notice_text": "spot"}
UPKEEP = {"notice": Notice.MAINTENANCE, "notice_at": ago(1)}
OBEYED = {"killed_by_agent": True, "why_killed": "a sibling ended"}


def by_agent(why: KilledFor | str, rank: int = 0, **changes: object):
    told = {"killed_by_agent": True, "why_killed": "words", "killed_for": why}
    return killed(rank, **told | changes)


def pair(first: object, second: object, *hosts: dict[str, object], **parts: object):
    """Two hosts; what each host's row says besides."""
    told = [*hosts, {}, {}]
    return running(
        first,
        second,
        attempts=(make_attempt(processes=2, first_step_at=ago(30)),),
        group=make_group(hosts=2),
        hosts=tuple(make_host(index, **told[index]) for index in range(2)),
        **parts,
    )


def alone(trainer: object, host: dict[str, object] | None = None, **group: object):
    return running(trainer, hosts=(make_host(**(host or {})),), group=make_group(**group))


# Evidence, the line of the table that it meets (0 is the first), and the verdict.
CASES = {
    "invalid": (0, pair(left(ExitCode.INVALID), killed(1)), Verdict.INVALID),
    "invalid despite a notice": (0, alone(left(ExitCode.INVALID), NOTICED), Verdict.INVALID),
    "diverged": (1, alone(left(ExitCode.DIVERGED)), Verdict.DIVERGED),
    "kernel ended it": (2, alone(killed(memory_killer=KERNEL)), Verdict.OUT_OF_MEMORY),
    "exit 137 and the kernel": (2, alone(left(137, memory_killer=KERNEL)), Verdict.OUT_OF_MEMORY),
    "xla": (2, alone(left(1, failure="RESOURCE_EXHAUSTED: 2 GB")), Verdict.OUT_OF_MEMORY),
    "memory of one of two": (
        2,
        pair(left(ExitCode.PEER_LOST), killed(1, memory_killer=KERNEL)),
        Verdict.OUT_OF_MEMORY,
    ),
    "notice, drained": (3, alone(left(75, drained=True), NOTICED), Verdict.PREEMPTED),
    "upkeep": (3, alone(killed(), UPKEEP), Verdict.MAINTENANCE),
    "shutdown": (3, alone(killed(), NOTICED | {"notice": Notice.SHUTDOWN}), Verdict.PREEMPTED),
    "a sibling's notice": (
        3,
        pair(killed(0, signal.SIGABRT), left(ExitCode.PEER_LOST, 1), {}, NOTICED),
        Verdict.PREEMPTED,
    ),
    "a crash before the notice": (
        5,
        pair(left(1, seconds_ago=5), killed(1, **OBEYED), {}, NOTICED),
        Verdict.CRASHED,
    ),
    "cloud took them": (
        3,
        alone(killed(), taken=Notice.MAINTENANCE, taken_at=ago(1)),
        Verdict.MAINTENANCE,
    ),
    "cloud took them, before the clock was set back": (
        3,
        alone(killed(), taken=Notice.PREEMPTED, taken_at=ago(-60)),
        Verdict.PREEMPTED,
    ),
    "a fault of its own before the cloud took them": (
        5,
        alone(killed(by=signal.SIGSEGV, seconds_ago=5), taken="preempted", taken_at=ago(1)),
        Verdict.CRASHED,
    ),
    "host gone": (
        4,
        pair(left(ExitCode.PEER_LOST), by_agent(HOST_GONE, 1)),
        Verdict.HOST_LOST,
    ),
    "host gone, sibling hung": (
        4,
        pair(by_agent(KilledFor.HUNG, seconds_ago=9), by_agent(HOST_GONE, 1)),
        Verdict.HOST_LOST,
    ),
    "hung": (5, alone(by_agent(KilledFor.HUNG)), Verdict.HUNG),
    "left on a notice": (5, alone(by_agent(KilledFor.NOTICE)), Verdict.PREEMPTED),
    "agent left": (5, alone(by_agent(KilledFor.LEAVING)), Verdict.PREEMPTED),
    "dead man": (5, alone(by_agent(KilledFor.DEAD_MAN)), Verdict.UNREACHABLE),
    "storage": (5, alone(left(ExitCode.STORAGE_FAILED)), Verdict.STORAGE_FAILED),
    "bad checkpoint": (5, alone(left(ExitCode.CHECKPOINT_REJECTED)), Verdict.STORAGE_FAILED),
    "drained unasked": (5, alone(left(ExitCode.DRAINED)), Verdict.PREEMPTED),
    "exit 1": (5, alone(left(1)), Verdict.CRASHED),
    "exit 137 alone": (5, alone(left(137)), Verdict.CRASHED),
    "signal": (5, alone(killed()), Verdict.CRASHED),
    "abort of a single one": (5, alone(killed(by=signal.SIGABRT)), Verdict.CRASHED),
    "died with its agent": (5, alone(killed(signal=None, why_killed="gone")), Verdict.CRASHED),
    "nobody saw it": (5, alone(killed(signal=None)), Verdict.UNKNOWN),
    "cause among obeyed": (
        5,
        pair(killed(0, **OBEYED, seconds_ago=3), killed(1)),
        Verdict.CRASHED,
    ),
    "all well, nothing saved": (6, alone(left(0)), Verdict.UNKNOWN),
    "only consequences": (
        7,
        pair(left(ExitCode.PEER_LOST, seconds_ago=6), killed(1, signal.SIGABRT, seconds_ago=6)),
        Verdict.CRASHED,
    ),
    "ended on our word": (7, alone(by_agent(KilledFor.SUPERSEDED)), Verdict.CRASHED),
}


@pytest.mark.parametrize("case", CASES)
def test_evidence_meets_its_line_and_its_verdict(case: str) -> None:
    line, state, verdict = CASES[case]
    facts = facts_of(state, state.attempts[-1])
    met = next(n for n, one in enumerate(TABLE) if one.find(facts) is not None)
    found = classify(facts)
    assert (met, found.verdict) == (line, verdict)
    assert found.verdict in TABLE[line].verdicts
    assert found.evidence
    assert found.summary


def test_the_table_is_total_and_every_line_is_tried() -> None:
    """Invariant 12: each way in which an agent or a trainer can tell an end has its verdict."""
    assert {line for line, _, _ in CASES.values()} == set(range(len(TABLE)))
    assert set(NOTICE_VERDICTS) == set(Notice)
    assert set(KILLED_VERDICTS) == {*KilledFor, HOST_GONE}
    assert set(EXIT_VERDICTS) == set(ExitCode) - {ExitCode.DONE, ExitCode.PEER_LOST}
    reached = {verdict for _, _, verdict in CASES.values()}
    assert reached == {verdict for line in TABLE for verdict in line.verdicts}


def test_the_documentation_has_the_table_as_it_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recovery.md").read_text()
    words = " ".join(text.split())
    places = [words.find(" ".join(line.seen.split())) for line in TABLE]
    assert -1 not in places
    assert places == sorted(places)


def test_of_a_gang_that_hung_the_process_that_stood_still_is_named() -> None:
    """Its sibling waited for it, and its agent was the first to lose patience."""
    late = "it completed no step for 10 s"
    waiting = by_agent(KilledFor.HUNG, 0, why_killed=f"{late}; its process was sleeping")
    wedged = by_agent(KilledFor.HUNG, 1, why_killed=f"{late}; its process was stopped (SIGSTOP)")
    waiting = replace(waiting, exited_at=ago(3))
    ended = only(reconcile(pair(waiting, wedged)), EndAttempt)
    assert ended.verdict is Verdict.HUNG
    assert "host 1" in ended.summary
    assert "stopped (SIGSTOP)" in ended.summary


def test_an_unknown_end_says_what_was_looked_at() -> None:
    end = only(reconcile(alone(killed(signal=None))), EndAttempt)
    assert "looked at: exit code, signal" in end.summary


# ---- what follows at once ----------------------------------------------------------------------


def test_lost_hosts_are_given_back_and_new_ones_asked_for() -> None:
    plan = reconcile(alone(killed(), NOTICED))
    assert only(plan, EndAttempt).verdict is Verdict.PREEMPTED
    assert only(plan, MoveGroup) == MoveGroup(
        GROUP, GroupCause.HOSTS_LOST, "given back after a host was lost"
    )
    assert only(plan, MoveRun).cause is RunCause.ATTEMPT_LOST


def test_a_crash_keeps_the_hosts() -> None:
    plan = reconcile(alone(killed()))
    assert not [change for change in plan.changes if isinstance(change, MoveGroup)]


def test_a_collective_abort_is_not_waited_for_once_a_notice_explains_it() -> None:
    """Invariant 13."""
    aborted = [killed(rank, signal.SIGABRT, seconds_ago=1) for rank in range(2)]
    assert reconcile(pair(*aborted)).changes == ()
    plan = reconcile(pair(*aborted, {}, NOTICED))
    assert only(plan, EndAttempt).verdict is Verdict.PREEMPTED


def test_what_the_cloud_said_is_written_down_before_anything_follows_from_it() -> None:
    state = alone(killed(), taken=Notice.PREEMPTED, taken_text="instance was preempted")
    assert reconcile(state).changes == (
        NoteTaken(GROUP, Notice.PREEMPTED, "instance was preempted"),
    )


@pytest.mark.parametrize("trainer", [killed(), left(1), left(137, memory_killer=KERNEL)])
def test_a_run_whose_last_step_is_accepted_is_complete_however_its_trainers_end(trainer) -> None:
    tight = JOB.model_copy(update={"policy": JOB.policy.model_copy(update={"max_crashes": 0})})
    state = running(trainer, checkpoints=(make_checkpoint(JOB.steps),))
    plan = reconcile(replace(state, job=tight))
    end = only(plan, EndAttempt)
    assert end.verdict is Verdict.COMPLETED
    assert "after that the trainer on host 0" in end.summary
    assert len(end.evidence) == 2
    assert only(plan, MoveRun).cause is RunCause.COMPLETED


def test_out_of_memory_for_the_second_time_asks_with_the_estimate_and_the_fields() -> None:
    second = make_attempt(2, first_step_at=ago(1))
    state = running(
        killed(attempt=2, memory_killer=KERNEL),
        attempts=(ended(1, Verdict.OUT_OF_MEMORY), second),
    )
    incident = only(reconcile(state), OpenIncident)
    told = " ".join(incident.done)
    assert incident.needs_person
    assert "Estimate for one device: 16 bytes for each of" in told
    assert "raise batch.microbatches (now 1)" in told
    assert "Attempt 1, from step 0: out_of_memory" in told
    assert any(seen.source == "kernel of host 0" for seen in incident.evidence)


# ---- late evidence -----------------------------------------------------------------------------


def after_a_crash(seconds: float = 10, **host: object):
    """Attempt 1 crashed a while ago and the run recovers on the same hosts."""
    first = ended(1, Verdict.CRASHED, summary="killed")
    first = replace(first, ended_at=ago(seconds))
    trainer = killed(seconds_ago=seconds + 0.1)
    state = running(trainer, attempts=(first,), hosts=(make_host(**host),))
    return replace(state, run=make_run(RunState.RECOVERING))


def test_a_notice_that_comes_late_revises_the_verdict() -> None:
    late = {"notice": Notice.PREEMPTED, "notice_at": ago(2), "notice_text": "spot"}
    plan = reconcile(after_a_crash(**late))
    revised = only(plan, ReviseVerdict)
    assert (revised.number, revised.verdict) == (1, Verdict.PREEMPTED)
    assert len(plan.changes) == 1


@pytest.mark.parametrize(("seconds", "noticed"), [(301, 300), (60, 20)])
def test_a_verdict_stands_after_five_minutes_and_against_an_unrelated_notice(
    seconds: float, noticed: float
) -> None:
    late = {"notice": Notice.PREEMPTED, "notice_at": ago(noticed)}
    plan = reconcile(after_a_crash(seconds, **late))
    assert not [change for change in plan.changes if isinstance(change, ReviseVerdict)]


@pytest.mark.parametrize(("verdict", "revised"), [(Verdict.CRASHED, 0), (Verdict.PREEMPTED, 1)])
def test_what_the_ledger_knew_first_came_first_though_the_clock_was_set_back(
    verdict: Verdict, revised: int
) -> None:
    """The cloud's word came after an end that knew nothing of it, or else was its cause."""
    state = after_a_crash()
    crashed = left(1, seconds_ago=10)
    taken = make_group(taken=Notice.MAINTENANCE, taken_at=ago(40))
    attempts = (replace(state.attempts[0], verdict=verdict),)
    state = replace(state, attempts=attempts, trainers=(crashed,), group=taken, groups=(taken,))
    found = [one for one in reconcile(state).changes if isinstance(one, ReviseVerdict)]
    assert len(found) == revised


def test_a_word_that_has_counted_counts_on_though_the_clock_was_set_back() -> None:
    """It is dated a minute after the end that it explains."""
    state = after_a_crash(70)
    taken = make_group(taken=Notice.PREEMPTED, taken_at=ago(10))
    attempts = (replace(state.attempts[0], verdict=Verdict.PREEMPTED),)
    state = replace(state, attempts=attempts, group=taken, groups=(taken,))
    assert not [one for one in reconcile(state).changes if isinstance(one, ReviseVerdict)]


@pytest.mark.parametrize(("seconds", "revised"), [(10, 1), (60, 0)])
def test_hosts_that_are_taken_at_this_moment_were_not_taken_at_an_end_long_ago(
    seconds: float, revised: int
) -> None:
    taken = make_group(taken=Notice.MAINTENANCE, taken_at=None)
    state = replace(after_a_crash(seconds), group=taken, groups=(taken,))
    found = [one for one in reconcile(state).changes if isinstance(one, ReviseVerdict)]
    assert len(found) == revised


def test_an_exit_that_is_told_late_revises_the_verdict() -> None:
    state = after_a_crash()
    told = replace(state.trainers[0], memory_killer=KERNEL)
    revised = only(reconcile(replace(state, trainers=(told,))), ReviseVerdict)
    assert revised.verdict is Verdict.OUT_OF_MEMORY


def test_what_an_agent_does_once_it_is_heard_of_again_is_no_cause() -> None:
    """Its trainer had outlived the verdict, and is ended because of it."""
    state = after_a_crash()
    lost = replace(state.attempts[0], verdict=Verdict.HOST_LOST)
    for late in (
        by_agent(KilledFor.SUPERSEDED, seconds_ago=2),
        by_agent(KilledFor.LEAVING, seconds_ago=2),
        by_agent(KilledFor.SUPERSEDED, seconds_ago=90),
        by_agent(HOST_GONE, seconds_ago=10),
    ):
        plan = reconcile(replace(state, attempts=(lost,), trainers=(late,)))
        assert not [one for one in plan.changes if isinstance(one, ReviseVerdict)]
    died_before = left(ExitCode.DIVERGED, seconds_ago=60, diverged_step=91)
    plan = reconcile(replace(state, attempts=(lost,), trainers=(died_before,)))
    assert only(plan, ReviseVerdict).bad_step == 91


def gave_up(**changes: object):
    """Paused by itself over a crash that was revised into a preemption since."""
    last = ended(1, Verdict.PREEMPTED, summary="spot", revised_at=ago(0.5))
    incident = Incident("r1", 4, 1, Verdict.PREEMPTED, ago(1), "spot", needs_person=True)
    run = make_run(RunState.PAUSED, settled_generation=1)
    gone = make_group(GroupState.GONE)
    return snap(run, attempts=(last,), incident=incident, group=gone, **changes)


def test_a_run_that_gave_up_over_a_revised_verdict_goes_on_by_itself() -> None:
    plan = reconcile(gave_up())
    assert only(plan, CloseIncident) == CloseIncident(4, None)
    assert only(plan, MoveRun).cause is RunCause.RESUMED


def test_it_stays_paused_when_its_budget_is_spent_all_the_same_or_people_want_otherwise() -> None:
    state = gave_up()
    strict = JOB.policy.model_copy(update={"max_host_losses": 0})
    tight = replace(state, job=JOB.model_copy(update={"policy": strict}))
    unrevised = replace(state, attempts=(replace(state.attempts[0], revised_at=None),))
    other = replace(state, incident=replace(state.incident, verdict=Verdict.PROVISION_FAILED))
    for stays in (tight, unrevised, other):
        assert reconcile(stays).changes == ()


def test_a_budget_that_a_revision_spends_stops_the_run_before_its_next_attempt() -> None:
    strict = JOB.policy.model_copy(update={"max_host_losses": 0})
    state = snap(
        make_run(RunState.RECOVERING),
        attempts=(ended(1, Verdict.HOST_LOST, summary="gone"),),
        group=make_group(),
        hosts=(make_host(),),
    )
    plan = reconcile(replace(state, job=JOB.model_copy(update={"policy": strict})))
    assert only(plan, MoveRun).cause is RunCause.GAVE_UP


def test_a_revised_divergence_opens_its_branch_before_the_run_goes_on() -> None:
    last = ended(1, Verdict.DIVERGED, summary="nan", revised_at=ago(0.5), bad_step=60)
    incident = Incident("r1", 4, 1, Verdict.DIVERGED, ago(1), "nan", needs_person=True)
    state = gave_up(checkpoints=(make_checkpoint(50),))
    state = replace(state, attempts=(last,), incident=incident)
    plan = reconcile(state)
    assert only(plan, OpenBranch).from_step == 50
    assert only(plan, MoveRun).cause is RunCause.RESUMED
    assert reconcile(replace(state, checkpoints=())).changes == ()


def test_a_late_revision_is_decided_at_a_time_that_counts() -> None:
    state = after_a_crash(notice=Notice.PREEMPTED, notice_at=ago(2))
    later = replace(state, now=NOW + timedelta(minutes=6))
    assert not [one for one in reconcile(later).changes if isinstance(one, ReviseVerdict)]
