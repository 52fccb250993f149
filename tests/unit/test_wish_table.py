"""Every wish in every state, beside every pending wish, has one defined outcome."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from orchestrator.cli.main import app
from orchestrator.state import TERMINAL_RUNS, Desired, RunState
from orchestrator.wish_table import WISH_TABLE, Accepted, Refused, Unchanged, Wish, outcome

COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
EVERY = [(wish, state, desired) for wish in Wish for state in RunState for desired in Desired]
R, D = RunState, Desired


@pytest.mark.parametrize("wish", Wish)
def test_the_table_is_total(wish: Wish) -> None:
    assert set(WISH_TABLE[wish]) == set(RunState)
    for row in WISH_TABLE[wish].values():
        assert set(row) == set(Desired)


def test_nothing_is_in_the_table_twice() -> None:
    assert set(WISH_TABLE) == set(Wish)
    assert len(EVERY) == 270


@pytest.mark.parametrize(("wish", "state", "desired"), EVERY)
def test_each_outcome_keeps_the_rules(wish: Wish, state: RunState, desired: Desired) -> None:
    match outcome(wish, state, desired):
        case Accepted() as accepted:
            assert accepted.then.endswith(".")
            if desired is D.CANCEL and wish not in (Wish.FORK, Wish.QUARANTINE, Wish.DELETE):
                pytest.fail("a cancel can not be taken back, nor anything be put in its place")
            if accepted.desired is not None:
                assert accepted.renews, "a new wish has a new generation"
                assert state not in (R.SUCCEEDED, R.CANCELLED)
            if state in (R.PAUSED, R.FAILED) and desired is D.RUN and accepted.renews:
                assert accepted.desired is not None, "a newer wish to run would wake it"
        case Unchanged(why=why):
            assert why.endswith(".")
            assert state not in TERMINAL_RUNS
        case Refused() as refused:
            assert refused.why.endswith(".")
            name, *rest = shlex.split(refused.instead.format(run="tiny"))[1:]
            COMMANDS[name].make_context(name, list(rest)).close()


@pytest.mark.parametrize(
    ("wish", "state", "desired", "leads_to"),
    [
        (Wish.PAUSE, R.PROVISIONING, D.RUN, D.PAUSE),
        (Wish.PAUSE, R.RECOVERING, D.RUN, D.PAUSE),
        (Wish.PAUSE, R.STOPPING, D.RUN, D.PAUSE),
        (Wish.CANCEL, R.STOPPING, D.PAUSE, D.CANCEL),
        (Wish.CANCEL, R.PAUSED, D.RUN, D.CANCEL),
        (Wish.RESUME, R.STOPPING, D.PAUSE, D.RUN),
        (Wish.RESUME, R.RUNNING, D.PAUSE, D.RUN),
        (Wish.RESUME, R.FAILED, D.RUN, D.RUN),
        (Wish.REVISE, R.FAILED, D.RUN, D.RUN),
        (Wish.REVISE, R.RUNNING, D.RUN, D.RUN),
        (Wish.ROLLBACK, R.RUNNING, D.RUN, None),
        (Wish.ROLLBACK, R.STOPPING, D.PAUSE, None),
        (Wish.FORK, R.SUCCEEDED, D.RUN, None),
        (Wish.CHECKPOINT, R.RUNNING, D.RUN, None),
    ],
)
def test_what_is_accepted(
    wish: Wish, state: RunState, desired: Desired, leads_to: Desired | None
) -> None:
    found = outcome(wish, state, desired)
    assert isinstance(found, Accepted)
    assert found.desired is leads_to


@pytest.mark.parametrize(
    ("wish", "state", "desired"),
    [
        (Wish.RESUME, R.RUNNING, D.RUN),
        (Wish.RESUME, R.STOPPING, D.RUN),
        (Wish.PAUSE, R.STOPPING, D.PAUSE),
        (Wish.PAUSE, R.PAUSED, D.PAUSE),
        (Wish.CANCEL, R.STOPPING, D.CANCEL),
        (Wish.CHECKPOINT, R.RUNNING, D.PAUSE),
    ],
)
def test_what_is_so_already(wish: Wish, state: RunState, desired: Desired) -> None:
    assert isinstance(outcome(wish, state, desired), Unchanged)


@pytest.mark.parametrize(
    ("wish", "state", "desired", "slug"),
    [
        (Wish.RESUME, R.STOPPING, D.CANCEL, "run-is-being-cancelled"),
        (Wish.RESUME, R.SUCCEEDED, D.RUN, "run-is-over"),
        (Wish.ROLLBACK, R.SUCCEEDED, D.RUN, "run-is-over"),
        (Wish.CHECKPOINT, R.QUEUED, D.RUN, "nothing-runs"),
        (Wish.CHECKPOINT, R.PAUSED, D.PAUSE, "nothing-runs"),
        (Wish.DELETE, R.RUNNING, D.RUN, "run-is-not-over"),
    ],
)
def test_what_is_refused(wish: Wish, state: RunState, desired: Desired, slug: str) -> None:
    found = outcome(wish, state, desired)
    assert isinstance(found, Refused)
    assert found.slug == slug
