"""A drill is a fault like any other, but for its words; a host that it kills counts as lost."""

from __future__ import annotations

import signal

import pytest

from orchestrator.reconcile.plan import (
    BuryTrainer,
    EndAttempt,
    LaunchAgent,
    MoveGroup,
    OpenIncident,
)
from orchestrator.reconcile.rules import reconcile
from orchestrator.records import HOST_GONE, Trainer
from orchestrator.state import AttemptState, Desired, GroupCause, GroupState, Verdict
from orchestrator.store.commands import Sight, derive
from tests.unit.reconcile_world import (
    JOB,
    ago,
    killed,
    kinds,
    make_attempt,
    make_checkpoint,
    make_host,
    only,
    running,
)
from worker.protocol import Drill, Victim


def drilled(victim: Victim, **changes: object):
    about = {"drill": victim, "drill_at": ago(2), "drill_by": "ada"}
    return make_attempt(first_step_at=ago(30), **about, **changes)


def test_a_killed_trainer_is_a_crash_that_says_it_was_a_drill() -> None:
    attempt = drilled(Victim.TRAINER)
    plan = reconcile(
        running(killed(by=signal.SIGKILL), attempts=(attempt,), checkpoints=(make_checkpoint(90),))
    )
    end, incident = only(plan, EndAttempt), only(plan, OpenIncident)
    assert end.verdict is Verdict.CRASHED
    assert end.summary == "a drill: the trainer on host 0 was killed by SIGKILL after step 90"
    assert incident.summary == end.summary
    seen = [(one.source, one.text) for one in incident.evidence]
    assert ("ada", "a drill was asked for: kill the trainer of attempt 1") in seen


def test_a_host_that_a_drill_has_killed_counts_as_lost_and_gets_no_agent() -> None:
    dead = make_host(running_attempt=1, agent_alive=False, trainer_alive=False)
    parts = {"attempts": (drilled(Victim.HOST),), "hosts": (dead,)}
    plan = reconcile(running(**parts))
    buried = only(plan, BuryTrainer)
    assert (buried.host_gone, buried.why) == (True, "a drill took its host away")
    assert kinds(plan.changes) == ["BuryTrainer"]
    gone = killed(by=None, killed_for=HOST_GONE, why_killed=buried.why)
    plan = reconcile(running(gone, **parts))
    assert only(plan, EndAttempt).verdict is Verdict.HOST_LOST
    assert only(plan, MoveGroup).cause is GroupCause.HOSTS_LOST
    agent = reconcile(running(attempts=(drilled(Victim.AGENT),), hosts=(dead,)))
    assert not only(agent, BuryTrainer).host_gone
    assert only(agent, LaunchAgent)


@pytest.mark.parametrize(
    ("running_attempt", "changes", "told"),
    [
        (1, {}, True),
        (None, {}, False),  # dead already, or not begun: another agent must not die of it
        (1, {"state": AttemptState.DRAINING}, False),
    ],
)
def test_the_agent_that_runs_the_attempt_alone_is_told(
    running_attempt: int | None, changes: dict[str, object], told: bool
) -> None:
    class Order:
        job = JOB

    host = make_host(running_attempt=running_attempt)
    begun = (Trainer(1, 0, pid=7),)
    sight = Sight(GroupState.READY, Desired.RUN, host, drilled(Victim.AGENT, **changes), begun)
    commands = derive(sight, lambda _: Order())  # pyright: ignore[reportArgumentType]
    wanted = Drill(attempt=1, victim=Victim.AGENT)
    assert (wanted in commands) is told
