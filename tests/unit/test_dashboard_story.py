"""The sentences before the numbers, and that nothing lacks a look."""

from __future__ import annotations

import pytest

from orchestrator.api.schemas import EvidenceView
from orchestrator.dashboard import ledger, looks, story
from orchestrator.ledger.goodput import Category
from orchestrator.state import AttemptState, CheckpointState, RunState, Verdict
from tests.fakes.stories import NOW, make_attempt, make_incident, make_run, recovered, waiting


def test_each_state_and_verdict_has_a_look_and_a_deed() -> None:
    assert set(looks.RUNS) == set(RunState)
    assert set(looks.ATTEMPTS) == set(AttemptState)
    assert set(looks.CHECKPOINTS) == set(CheckpointState)
    assert set(looks.VERDICTS) == set(looks.DEEDS) == set(Verdict)
    assert set(ledger.CATEGORIES) == set(Category)


def test_no_two_run_states_look_alike() -> None:
    assert len({(look.icon, look.word) for look in looks.RUNS.values()}) == len(RunState)


def test_the_headline_counts_who_needs_a_person() -> None:
    runs = [make_run("a"), make_run("b", state=RunState.QUEUED), waiting("c").run]
    told = story.headline(runs)
    assert told.first == "1 needs you"
    assert told.rest.endswith("1 run trains and 1 run waits for hosts.")
    assert story.headline([*runs, waiting("d").run]).first == "2 need you"


def test_the_headline_of_a_quiet_night() -> None:
    assert story.headline([]).first == "Nothing needs you"
    assert story.headline([make_run("a"), make_run("b")]).rest == "2 runs train."


def test_a_killed_run_that_went_on_says_so() -> None:
    told = recovered()
    answer = story.answer(told.run, told.attempts, told.incidents, NOW)
    assert answer.first == "Nothing waits for you."
    assert "It was killed once; it went on by itself with bit-identical losses." in answer.rest


def test_a_run_that_trains_slowly_says_so() -> None:
    run = make_run(slow=("a step takes 2 s; the best was 1 s",))
    answer = story.answer(run, [make_attempt()], [], NOW)
    assert "ago and trains. A step takes 2 s; the best was 1 s." in answer.rest


def test_a_crash_without_a_signal_is_not_called_a_kill() -> None:
    seen = (EvidenceView(at=NOW, source="agent", text="exit code 1"),)
    told = recovered()
    answer = story.answer(told.run, told.attempts, [make_incident(seen=seen)], NOW)
    assert "It crashed once" in answer.rest


def test_several_stops_are_counted_by_kind() -> None:
    stops = [
        make_incident(1, verdict=Verdict.PREEMPTED),
        make_incident(2, verdict=Verdict.HUNG),
        make_incident(3, verdict=Verdict.PREEMPTED),
    ]
    answer = story.answer(make_run(), [make_attempt()], stops, NOW)
    assert "It was preempted twice and hung once; each time it went on by itself." in answer.rest
    assert "The 3 stops cost 23" in answer.rest


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([False, True], "it went on by itself once and waited for a person once."),
        ([True, True], "each time it waited for a person."),
        ([True], "it waited for a person."),
    ],
)
def test_what_a_person_brought_back_did_not_go_on_by_itself(asked: list[bool], told: str) -> None:
    stops = [make_incident(n, asked_person=one) for n, one in enumerate(asked, start=1)]
    assert told in story.answer(make_run(), [make_attempt()], stops, NOW).rest


def test_a_replay_that_differs_is_never_called_identical() -> None:
    told = recovered()
    change = {"replayed_bit_identical": False, "first_difference_step": 83}
    attempts = [told.attempts[0], told.attempts[1].model_copy(update=change)]
    answer = story.answer(told.run, attempts, told.incidents, NOW)
    assert "the replayed losses of attempt 2 differ from step 83 on" in answer.rest
    assert "bit-identical" not in answer.rest


def test_what_stopped_nothing_is_no_stop() -> None:
    told = recovered()
    other = make_incident(2, verdict=Verdict.NOT_REPRODUCED, stopped=False, asked_person=True)
    alone = story.answer(told.run, told.attempts, told.incidents, NOW)
    assert story.answer(told.run, told.attempts, [*told.incidents, other], NOW) == alone


def test_an_open_stop_does_not_claim_to_be_over() -> None:
    stop = make_incident(closed_at=None, closed_by_attempt=None)
    run = make_run(state=RunState.RECOVERING)
    answer = story.answer(run, [make_attempt()], [stop], NOW)
    assert "by itself" not in answer.rest
    assert "Longhaul is bringing it back" in answer.rest


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.FAILED])
def test_who_needs_a_person_says_why_and_for_how_long(state: RunState) -> None:
    run = waiting().run.model_copy(update={"state": state})
    answer = story.answer(run, [], [], NOW)
    assert answer.tone == "need"
    assert answer.first.endswith("waits for you.")
    assert answer.rest.startswith("6 attempts in a row crashed")
    assert answer.rest.endswith("Nothing has trained for 9\N{NO-BREAK SPACE}m.")


@pytest.mark.parametrize("state", RunState)
def test_each_state_has_an_answer(state: RunState) -> None:
    answer = story.answer(make_run(state=state), [make_attempt()], [], NOW)
    assert answer.first.endswith(".")
    assert answer.rest.strip()


def test_at_risk_are_the_steps_past_the_newest_checkpoint() -> None:
    told = recovered()
    assert story.at_risk(told.run) == 20
    assert story.at_risk(make_run()) == 120
    assert story.at_risk(make_run(state=RunState.PAUSED)) is None


def test_a_field_at_the_start_of_a_sentence_is_written_as_it_must_be_typed() -> None:
    run = make_run(
        state=RunState.PAUSED, needs_person=True, reason="policy.max_hours is 2: 2.01 hours held"
    )
    answer = story.answer(run, [make_attempt()], [], NOW)
    assert answer.rest.startswith("policy.max_hours is 2: 2.01 hours held. ")
