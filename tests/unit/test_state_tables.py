"""The three state tables are total, closed and drawn as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import diagrams
from orchestrator.state import (
    ATTEMPT_TABLE,
    GROUP_TABLE,
    RETRY_CLASS,
    RUN_TABLE,
    TERMINAL_RUNS,
    AttemptCause,
    AttemptState,
    GroupCause,
    GroupState,
    IllegalMove,
    RunCause,
    RunState,
    Verdict,
    move,
)

TABLES = [
    (RUN_TABLE, RunState, RunCause),
    (ATTEMPT_TABLE, AttemptState, AttemptCause),
    (GROUP_TABLE, GroupState, GroupCause),
]


@pytest.mark.parametrize(("table", "states", "causes"), TABLES)
def test_every_state_has_a_row_and_every_cause_is_used(table, states, causes):
    assert set(table) == set(states)
    assert {cause for row in table.values() for cause in row} == set(causes)


@pytest.mark.parametrize(("table", "states", "_causes"), TABLES)
def test_every_state_is_reached_from_the_first(table, states, _causes):
    reached, front = set(), [next(iter(table))]
    while front:
        state = front.pop()
        if state not in reached:
            reached.add(state)
            front.extend(table[state].values())
    assert reached == set(states)


@pytest.mark.parametrize(("table", "states", "causes"), TABLES)
def test_every_pair_either_moves_or_is_refused_by_name(table, states, causes):
    for state in states:
        for cause in causes:
            if cause in table[state]:
                assert move(table, state, cause) in states
            else:
                with pytest.raises(IllegalMove, match=f"{state} by '{cause}'"):
                    move(table, state, cause)


def test_nothing_leads_out_of_an_end_but_the_resume_of_a_failed_run():
    for state in TERMINAL_RUNS - {RunState.FAILED}:
        assert not RUN_TABLE[state]
    assert RUN_TABLE[RunState.FAILED] == {RunCause.RESUMED: RunState.QUEUED}
    assert not ATTEMPT_TABLE[AttemptState.ENDED]
    assert not GROUP_TABLE[GroupState.GONE]


def test_every_verdict_has_a_consequence():
    assert set(RETRY_CLASS) == set(Verdict)


def test_the_page_of_diagrams_is_what_the_tables_say():
    page = Path(__file__).parents[2] / "docs" / "states.md"
    assert page.read_text() == diagrams.page()
