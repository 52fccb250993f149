"""Steps that are trained again are held to their first telling as they come in (invariant 8)."""

from __future__ import annotations

import pytest

from orchestrator.reconcile.plan import EndAttempt, MoveGroup, MoveRun, TellReplay
from orchestrator.reconcile.rules import reconcile
from orchestrator.state import GroupCause, RunCause, Verdict
from orchestrator.store import history, pages, reads
from tests.contract.conftest import House

KEY = "cpu x1, 1 processes, deterministic"
TWO = "cpu x2, 1 processes, deterministic"
GPU = "H200 x1, 1 processes"


def step(number: int, loss: float = 2.5, batch: str | None = None) -> dict[str, object]:
    return {
        "kind": "step",
        "step": number,
        "loss": loss,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "tokens": 64,
        "seconds": 0.1,
        "data_wait": 0.0,
        "batch_hash": f"b{number}" if batch is None else batch,
    }


def start(key: str | None) -> dict[str, object]:
    return {"kind": "trainer_started", "pid": 7, "numerics_key": key}


@pytest.fixture
def crashed(house: House) -> House:
    """Attempt 1 told ten steps and crashed; attempt 2 is made and has told nothing."""
    house.ready()
    house.attempt()
    house.tell(start(KEY), *(step(n) for n in range(1, 11)))
    house.commit(EndAttempt(1, Verdict.CRASHED, "it fell", ()))
    house.attempt(2)
    return house


def found(house: House, attempt: int = 2) -> tuple[int | None, str | None]:
    one = house.snapshot().attempts[attempt - 1]
    return one.replay_differs_step, one.replay_differs


def test_an_attempt_knows_how_far_it_trains_again(crashed: House) -> None:
    first, second = crashed.snapshot().attempts
    assert (first.replays_through, second.replays_through) == (None, 10)
    assert first.replay_differs_step is None, "nothing told of its steps before"


def test_steps_that_come_out_the_same_are_no_news(crashed: House) -> None:
    crashed.tell(start(KEY), *(step(n) for n in range(1, 11)), step(11, 9.0), attempt=2)
    assert found(crashed) == (None, None)


def test_the_first_step_that_differs_is_kept_and_asks_for_a_decision(crashed: House) -> None:
    told = crashed.tell(start(KEY), *(step(n) for n in range(1, 5)), attempt=2)
    assert found(crashed) == (None, None)
    told = crashed.tell(step(5, 2.6), step(6, 2.7), attempt=2)
    assert told.decisive
    assert found(crashed) == (5, "its loss is 2.6, that of attempt 1 was 2.5")
    told = crashed.tell(step(7, 2.8), attempt=2)
    assert not told.decisive, "the first one is enough"
    assert found(crashed)[0] == 5


@pytest.mark.parametrize("key", [TWO, GPU, None])
def test_other_devices_may_tell_other_losses_but_no_other_batch(
    crashed: House, key: str | None
) -> None:
    crashed.tell(start(key), step(1, 2.51), attempt=2)
    assert found(crashed) == (None, None)
    crashed.tell(step(2, 2.5, batch="other"), attempt=2)
    assert found(crashed) == (2, "its batch is other, that of attempt 1 was b2")


def test_a_loss_beyond_the_envelope_differs(crashed: House) -> None:
    crashed.tell(start(TWO), step(1, 2.6), attempt=2)
    words = "its loss is 2.6, that of attempt 1 was 2.5, which is more than 1% away"
    assert found(crashed) == (1, words)


def test_a_trainer_that_promises_no_equal_bits_is_held_to_the_envelope(house: House) -> None:
    house.ready()
    house.attempt()
    house.tell(start(GPU), step(1))
    house.commit(EndAttempt(1, Verdict.CRASHED, "it fell", ()))
    house.attempt(2)
    house.tell(start(GPU), step(1, 2.5001), attempt=2)
    assert found(house) == (None, None)
    with house.engine.connect() as connection:
        replay = history.replays(connection, "r1")[2]
    assert (replay.steps, replay.compared, replay.identical) == (1, 0, None)
    assert replay.apart == pytest.approx(0.00004)


def test_of_several_tellings_the_last_one_before_counts(crashed: House) -> None:
    crashed.tell(start(KEY), step(1), step(2, 2.6), attempt=2)
    crashed.commit(EndAttempt(2, Verdict.CRASHED, "it fell again", ()))
    crashed.attempt(3)
    assert crashed.snapshot().attempts[2].replays_through == 10
    crashed.tell(start(KEY), step(1), step(2, 2.6), step(3), attempt=3)
    assert found(crashed, 2)[0] == 2
    assert found(crashed, 3) == (None, None)


def test_what_an_attempt_that_was_given_up_tells_late_is_compared_too(crashed: House) -> None:
    """Its host was cut off: it trained on, and its steps come when others have trained them."""
    crashed.tell(start(KEY), *(step(n) for n in range(1, 13)), attempt=2)
    told = crashed.tell(step(11), step(12, 2.6), attempt=1)
    assert told.decisive
    assert found(crashed) == (12, "its loss is 2.5, that of attempt 1 was 2.6")
    assert found(crashed, 1) == (None, None)


def test_what_is_told_late_is_awaited(crashed: House) -> None:
    crashed.tell(step(11), step(12), attempt=1)
    assert crashed.snapshot().attempts[1].replays_through == 12
    crashed.tell(start(KEY), step(12, 2.6), attempt=2)
    assert found(crashed)[0] == 12


def test_another_branch_has_batches_of_its_own(crashed: House) -> None:
    with crashed.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE attempts SET branch = 2 WHERE number = 2")
    crashed.tell(start(KEY), step(1, 9.0, batch="other"), attempt=2)
    assert found(crashed) == (None, None)


def test_a_difference_becomes_an_incident_that_is_over_and_is_paged(crashed: House) -> None:
    crashed.tell(start(KEY), step(1, 2.6), attempt=2)
    snap = crashed.snapshot()
    plan = reconcile(snap)
    assert [type(change) for change in plan.changes] == [TellReplay]
    crashed.commit(*plan.changes, snap=snap)
    [row] = crashed.rows("incidents")
    assert (row["verdict"], row["attempt"]) == ("not_reproduced", 2)
    assert row["opened_at"] == row["closed_at"] == crashed.now
    assert crashed.snapshot().incident is None
    assert not [one for one in reconcile(crashed.snapshot()).changes if isinstance(one, TellReplay)]
    with crashed.engine.connect() as connection:
        [page] = pages.due(connection, crashed.tick(), 10)
    assert not page.closed, "a person has to know, although nothing waits for one"
    assert [row["kind"] for row in crashed.rows("events")][-1] == "incident_opened"


@pytest.mark.parametrize("over", [RunCause.GAVE_UP, RunCause.INVALID, RunCause.COMPLETED])
def test_what_differs_is_told_once_of_a_run_that_is_over(crashed: House, over: RunCause) -> None:
    """A host that was cut off delivers what it told when nothing is left to decide."""
    crashed.tell(start(KEY), *(step(n) for n in range(1, 11)), step(11, 2.6), attempt=2)
    rest(crashed, over)
    before = state_of(crashed)
    assert looked_at(crashed) == []
    told = crashed.tell(step(11), attempt=1)
    assert told.decisive, "it wakes whoever decides"
    assert looked_at(crashed) == ["r1"], "and is looked at too where nobody was woken"
    snap = crashed.snapshot()
    [change] = reconcile(snap).changes
    crashed.commit(change, snap=snap)
    [row] = crashed.rows("incidents")
    assert (row["verdict"], row["attempt"]) == ("not_reproduced", 2)
    assert "its loss is 2.6, that of attempt 1 was 2.5" in str(row["summary"])
    assert len(crashed.rows("pages")) == 1
    crashed.tell(step(11, 2.7), attempt=1)
    assert looked_at(crashed) == [], "told once"
    assert reconcile(crashed.snapshot()).changes == ()
    assert state_of(crashed) == before
    assert not reconcile(crashed.snapshot()).actions


def rest(house: House, cause: RunCause) -> None:
    """The run is over, and holds nothing any more."""
    house.commit(EndAttempt(2, Verdict.CRASHED, "it fell", ()))
    house.commit(MoveRun(cause, "over", settle=True), MoveGroup(house.group, GroupCause.NOT_WANTED))
    house.commit(MoveGroup(house.group, GroupCause.RELEASED))


def state_of(house: House) -> list[object]:
    [run] = house.rows("runs")
    return [run[name] for name in ("state", "state_since", "reason", "finished_at", "desired")]


def looked_at(house: House) -> list[str]:
    with house.engine.connect() as connection:
        return reads.active_runs(connection)
