"""How many failures are tolerated, what resets the count, and how long each restart waits."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.reconcile.plan import (
    MakeAttempt,
    MoveRun,
    OpenIncident,
)
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import (
    Attempt,
)
from orchestrator.state import (
    AttemptState,
    RunCause,
    RunState,
    Verdict,
)
from tests.unit.reconcile_world import (
    JOB,
    ago,
    ended,
    killed,
    make_attempt,
    make_group,
    make_host,
    make_run,
    only,
    running,
    snap,
)
from worker.protocol import PolicySpec


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
