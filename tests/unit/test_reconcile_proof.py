"""A replay that came out otherwise is told as an incident, once, and stops nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.reconcile.plan import Plan, TellReplay
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.state import RunState, Verdict
from tests.unit.reconcile_world import (
    NOW,
    ago,
    ended,
    make_attempt,
    make_group,
    make_host,
    make_run,
    only,
    snap,
)


def resumed(**changes: object) -> Snapshot:
    again = make_attempt(
        2, resumed_from_step=10, first_step_at=ago(60), replays_through=20, **changes
    )
    return snap(
        make_run(RunState.RUNNING),
        attempts=(ended(1, Verdict.CRASHED), again),
        group=make_group(),
        hosts=(make_host(0, running_attempt=2),),
    )


DIFFERS = {"replay_differs_step": 12, "replay_differs": "its loss is 2, that of attempt 1 was 1"}


def test_the_first_difference_is_told_and_nothing_else_is_done() -> None:
    plan = reconcile(resumed(**DIFFERS))
    told = only(plan, TellReplay)
    assert plan == Plan((told,))
    assert told.attempt == 2
    assert "step 12 is the first that came out otherwise: its loss is 2" in told.summary
    [seen] = told.evidence
    assert seen.text == "at step 12, its loss is 2, that of attempt 1 was 1"


@pytest.mark.parametrize("changes", [{}, {**DIFFERS, "replay_told_at": NOW}])
def test_it_is_told_once_and_only_where_there_is_one(changes: dict[str, object]) -> None:
    assert not [one for one in reconcile(resumed(**changes)).changes if isinstance(one, TellReplay)]


@pytest.mark.parametrize("state", RunState)
def test_it_is_told_in_every_state_of_the_run(state: RunState) -> None:
    """Also an attempt that is over may be found to differ, by what is told of it late."""
    seen = resumed()
    over = ended(2, Verdict.CRASHED, **DIFFERS)
    looked = replace(seen, run=replace(seen.run, state=state), attempts=(seen.attempts[0], over))
    assert only(reconcile(looked), TellReplay).attempt == 2
