"""Which host the others wait for, and whether a run is slower than it was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.reconcile.plan import NoteSlow, Plan
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Pace, Trainer
from orchestrator.state import RunState, Verdict
from tests.unit.reconcile_world import (
    ago,
    ended,
    make_attempt,
    make_group,
    make_host,
    make_run,
    only,
    snap,
)


def pace(own: float, seconds: float = 1.0, at: float = 10, data_wait: float = 0.0) -> Pace:
    return Pace(ago(at), 100, seconds, own, data_wait)


def gang(*paces: Pace | None, best: float | None = 1.0) -> Snapshot:
    size = len(paces)
    trainers = tuple(Trainer(1, rank, pid=7, pace=one) for rank, one in enumerate(paces))
    hosts = tuple(make_host(index, running_attempt=1) for index in range(size))
    attempt = make_attempt(1, processes=size, first_step_at=ago(60), best_pace_seconds=best)
    state = snap(
        make_run(RunState.RUNNING),
        attempts=(attempt,),
        group=make_group(hosts=size),
        hosts=hosts,
        trainers=trainers,
    )
    return with_policy(state)


def with_policy(state: Snapshot, **changes: object) -> Snapshot:
    policy = state.job.policy.model_copy(update=changes)
    return replace(state, job=state.job.model_copy(update={"policy": policy}))


def noted(plan: Plan) -> dict[int | None, str | None]:
    return {one.rank: one.words for one in plan.changes if isinstance(one, NoteSlow)}


def named(state: Snapshot, rank: int) -> Snapshot:
    trainers = tuple(
        replace(one, slow_why="slow") if one.rank == rank else one for one in state.trainers
    )
    return replace(state, trainers=trainers)


def test_a_host_that_the_others_wait_for_is_named() -> None:
    plan = reconcile(gang(pace(0.1), pace(0.98, data_wait=0.7), pace(0.2)))
    note = only(plan, NoteSlow)
    assert (note.attempt, note.rank) == (1, 1)
    assert note.words == (
        "host 1 keeps the others waiting: of a step of 1 s its own work takes 0.98 s"
        " (0.7 s of it waiting for data), that of the others 0.15 s"
    )


@pytest.mark.parametrize(
    ("paces", "why"),
    [
        ((pace(0.5), pace(0.05)), "its work is hidden behind that of the devices"),
        ((pace(0.95), pace(0.6)), "the others work nearly as long"),
        ((pace(0.05), pace(0.05)), "all wait for the devices"),
        ((pace(0.98), None), "nothing is known of the other one"),
        ((pace(0.98), pace(0.1, at=301)), "nothing new is known of the other one"),
    ],
)
def test_nobody_is_named(paces: tuple[Pace | None, ...], why: str) -> None:
    assert noted(reconcile(gang(*paces))) == {}, why


def test_a_lone_host_has_nobody_to_be_slower_than() -> None:
    assert noted(reconcile(gang(pace(1.0)))) == {}


def test_it_is_named_once_and_told_when_it_keeps_up_again() -> None:
    assert noted(reconcile(named(gang(pace(0.98), pace(0.1)), 0))) == {}
    nearly = named(gang(pace(0.8), pace(0.5)), 0)
    assert noted(reconcile(nearly)) == {}, "it would be named again at once"
    assert noted(reconcile(named(gang(pace(0.7), pace(0.1)), 0))) == {0: None}
    assert noted(reconcile(named(gang(pace(0.98), pace(0.9)), 0))) == {0: None}


def test_a_run_that_is_slower_than_it_was_is_named() -> None:
    words = noted(reconcile(gang(pace(0.1, seconds=1.6, data_wait=0.6))))[None]
    assert words == (
        "a step takes 1.6 s (0.6 s of it waiting for data) since about step 100; the best was 1 s"
    )
    assert noted(reconcile(gang(pace(0.1, seconds=1.4)))) == {}
    assert noted(reconcile(gang(pace(0.1, seconds=1.6), best=None))) == {}


@pytest.mark.parametrize(("seconds", "over"), [(1.3, False), (1.2, True)])
def test_it_is_over_when_most_of_it_is_gone(seconds: float, over: bool) -> None:
    state = gang(pace(0.1, seconds=seconds))
    slow = replace(state, attempts=(replace(state.attempts[0], slow_why="slow"),))
    assert noted(reconcile(slow)) == ({None: None} if over else {})


@pytest.mark.parametrize(
    ("changes", "slower"), [({}, True), ({"revision": 2}, False), ({"processes": 2}, False)]
)
def test_the_past_is_that_of_attempts_which_trained_the_same(
    changes: dict[str, object], slower: bool
) -> None:
    before = ended(1, Verdict.PREEMPTED, best_pace_seconds=0.5, **changes)
    state = gang(pace(0.1), best=1.0)
    now = replace(state.attempts[0], number=2)
    trainers = tuple(replace(one, attempt=2) for one in state.trainers)
    hosts = tuple(replace(one, running_attempt=2) for one in state.hosts)
    state = replace(state, attempts=(before, now), trainers=trainers, hosts=hosts)
    assert (None in noted(reconcile(state))) is slower


def test_a_policy_may_name_nobody_and_takes_back_what_was_named() -> None:
    state = gang(pace(0.98, seconds=9.0), pace(0.1, seconds=9.0))
    quiet = with_policy(named(state, 0), slow_host_factor=None, slow_run_factor=None)
    assert noted(reconcile(quiet)) == {0: None}
