"""What agents tell is stored once, by the agent that may, and old attempts change nothing."""

from __future__ import annotations

import random
import threading
from datetime import timedelta

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DataError

from orchestrator.reconcile.plan import EndAttempt, MoveGroup, PlanLaunch
from orchestrator.roles import Role
from orchestrator.state import GroupCause, Verdict
from orchestrator.store import callers, ingest, ledger_events
from orchestrator.store.audit import Actor
from orchestrator.store.checkpoint_wishes import Quarantine, quarantine
from orchestrator.store.writer import Writer
from tests.contract.conftest import SECRET, House
from worker.protocol import (
    AgentReport,
    CheckpointAccepted,
    CheckpointOffer,
    CheckpointWritten,
    Envelope,
    Register,
)


def step(number: int, **changes: object) -> dict[str, object]:
    told: dict[str, object] = {
        "kind": "step",
        "step": number,
        "loss": 2.0,
        "grad_norm": 1.0,
        "learning_rate": 0.1,
        "tokens": 2048,
        "seconds": 0.5,
        "data_wait": 0.0,
        "batch_hash": "h",
    }
    return told | changes


def written(number: int, attempt: int = 1, **changes: object) -> dict[str, object]:
    told: dict[str, object] = {
        "kind": "checkpoint_written",
        "checkpoint_id": f"a{attempt}-s{number}",
        "step": number,
        "uri": f"/data/storage/runs/r1/a{attempt}/checkpoints/{number}",
        "bytes": 10 << 32,
        "files": 3,
        "manifest_sha256": "a" * 64,
        "state_digest": "b" * 64,
        "stall_seconds": 0.1,
        "write_seconds": 0.2,
    }
    return told | changes


def offer(house: House, attempt: int = 1, instance: str = "i1", **changes: object):
    checkpoint = CheckpointWritten.model_validate(written(5, attempt) | changes)
    call = CheckpointOffer(
        group=house.group,
        host=0,
        instance=instance,
        run_id="r1",
        attempt=attempt,
        checkpoint=checkpoint,
    )
    with house.engine.begin() as connection:
        return ledger_events.offer(connection, call, SECRET, house.tick())


def end(house: House, number: int = 1) -> None:
    house.commit(EndAttempt(number, Verdict.CRASHED, "it fell", ()))


@pytest.fixture
def running(house: House) -> House:
    """One host, its first attempt just made."""
    house.ready()
    house.attempt()
    return house


def started(house: House) -> House:
    house.tell({"kind": "trainer_started", "pid": 77}, step(1), running=1)
    return house


# ---- who may speak -----------------------------------------------------------------------------


def test_registering_takes_a_host_over(house: House) -> None:
    house.ready()
    house.tick()
    assert house.register(0, "i2") == 0
    host = house.snapshot().hosts[0]
    assert (host.instance, host.registered_at, host.address) == ("i2", house.now, "127.0.0.1")
    with pytest.raises(callers.OldInstance):
        house.send(instance="i1")
    house.send(instance="i2")


def test_a_clock_set_back_does_not_change_who_came_before_whom(house: House) -> None:
    """The agents that serve an attempt came before it, and one that replaces them after it."""
    house.ready()
    house.tick(-60.0)
    house.attempt()
    first = house.snapshot()
    registered = first.hosts[0].registered_at
    assert registered is not None
    assert registered <= first.attempts[0].created_at
    house.tick(-60.0)
    house.register(0, "i2")
    replaced = house.snapshot().hosts[0].registered_at
    assert replaced is not None
    assert replaced > first.attempts[0].created_at


def test_registering_again_changes_nothing(running: House) -> None:
    started(running)
    before = running.rows("hosts")
    running.tick()
    call = Register(protocol=2, group=running.group, host=0, instance="i1", facts=running.facts(0))
    with running.engine.begin() as connection:
        answer = ingest.register(connection, call, SECRET, running.now)
    assert answer.acked_seq == 2
    assert running.rows("hosts") == before


@pytest.mark.parametrize(
    ("changes", "secret", "refusal"),
    [
        ({}, "wrong", callers.BadSecret),
        ({}, "", callers.BadSecret),
        ({"host": 5}, SECRET, callers.BadSecret),
        ({"group": "nobody"}, SECRET, callers.BadSecret),
        ({"protocol": 99}, SECRET, callers.ProtocolRefused),
    ],
)
def test_registrations_that_are_refused(
    house: House, changes: dict[str, object], secret: str, refusal: type[Exception]
) -> None:
    house.ready()
    before = house.rows("hosts")
    told = {"protocol": 2, "group": house.group, "host": 0, "instance": "x"} | changes
    call = Register.model_validate(told | {"facts": house.facts(0)})
    with pytest.raises(refusal), house.engine.begin() as connection:
        ingest.register(connection, call, secret, house.now)
    assert house.rows("hosts") == before


def test_no_secret_is_right_where_none_is_set(house: House) -> None:
    house.ready()
    house.commit(PlanLaunch(house.group, 0))
    with pytest.raises(callers.BadSecret):
        house.send()


def test_nobody_registers_with_a_group_that_is_given_back(house: House) -> None:
    house.ready()
    house.launch(0)
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    call = Register(protocol=2, group=house.group, host=0, instance="x", facts=house.facts(0))
    with pytest.raises(callers.GroupNotWanted), house.engine.begin() as connection:
        ingest.register(connection, call, SECRET, house.now)


# ---- exactly once ------------------------------------------------------------------------------


def test_batches_that_repeat_and_overlap_count_once(running: House) -> None:
    told = [running.envelope(step(n)) for n in range(1, 21)]
    told += [running.envelope({"kind": "log", "lines": [f"line {n}"]}) for n in range(20)]
    told += [running.envelope({"kind": "save_failed", "step": 1, "reason": "x"})]
    chance = random.Random(5)
    assert running.send(*told[:10]).acked_seq == 10
    acked = 10
    while acked < len(told):
        first = chance.randrange(0, acked + 1)
        last = chance.randrange(first, len(told)) + 1
        acked = max(acked, last)
        assert running.send(*told[first:last]).acked_seq == acked
    assert [point["step"] for point in running.rows("metric_points")] == list(range(1, 21))
    lines = [row["line"] for row in running.rows("log_lines")]
    assert lines == [f"line {n}" for n in range(20)]
    assert [row["kind"] for row in running.rows("events")].count("save_failed") == 1


def test_gaps_are_taken_and_what_comes_late_is_not(running: House) -> None:
    running.send(running.envelope(step(5), seq=50))
    assert running.send(running.envelope(step(4), seq=40)).acked_seq == 50
    assert [point["step"] for point in running.rows("metric_points")] == [5]


def test_a_report_that_fails_acknowledges_nothing(running: House) -> None:
    good, bad = running.envelope(step(1)), running.envelope({"kind": "x", "n": 1})

    class Broken(Exception):
        pass

    def refuse(*_: object) -> None:
        raise Broken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest.commands, "settle_never_started", refuse)
        with pytest.raises(Broken):
            running.send(good, bad)
    assert running.rows("metric_points") == []
    assert running.rows("hosts")[0]["acked_seq"] == 0
    assert running.send(good, bad).acked_seq == 2


def test_events_survive_the_agent_that_spooled_them(running: House) -> None:
    running.tell(step(1))
    late = running.envelope(step(2))
    assert running.register(0, "i2") == 1
    assert running.send(late, instance="i2").acked_seq == 2


# ---- many at once ------------------------------------------------------------------------------


def deliver(house: House, *calls: AgentReport) -> list[object]:
    with house.engine.begin() as connection:
        found = [ingest.Delivery(call, SECRET, house.now) for call in calls]
        return list(ingest.reports(connection, found))


def call(house: House, *envelopes: Envelope, **changes: object) -> AgentReport:
    told = {"group": house.group, "host": 0, "instance": "i1", "events": envelopes} | changes
    return AgentReport.model_validate(told)


def test_each_sender_of_a_batch_is_answered_by_itself(gang: House) -> None:
    gang.ready()
    gang.attempt()
    found = deliver(
        gang,
        call(gang, gang.envelope(step(1))),
        call(gang, gang.envelope(step(2)), instance="old"),
        call(
            gang,
            gang.envelope({"kind": "beat", "step": 1, "seconds": 1, "data_wait": 0}, host=1),
            host=1,
            running_attempt=7,
        ),
        call(gang, host=9),
    )
    assert [type(one) for one in found] == [
        ingest.Stored,
        callers.OldInstance,
        ingest.Stored,
        callers.BadSecret,
    ]
    assert [point["step"] for point in gang.rows("metric_points")] == [1]
    assert [(row["rank"], row["last_step"]) for row in gang.rows("trainers")] == [(0, 1), (1, 1)]
    assert [(h["index"], h["acked_seq"], h["running_attempt"]) for h in gang.rows("hosts")] == [
        (0, 1, None),
        (1, 1, 7),
    ]
    commands = [one.commands for one in found if isinstance(one, ingest.Stored)]
    assert [[one.kind for one in told] for told in commands] == [[], ["kill"]]


def test_a_report_twice_in_one_batch_counts_once(running: House) -> None:
    """The answer was lost, and the agent was quicker than the first commit."""
    told = [running.envelope(step(n)) for n in (1, 2)]
    more = running.envelope({"kind": "save_failed", "step": 2, "reason": "x"})
    first, second, third = deliver(
        running, call(running, *told), call(running, *told), call(running, *told, more)
    )
    assert isinstance(first, ingest.Stored)
    assert isinstance(second, ingest.Stored)
    assert isinstance(third, ingest.Stored)
    assert (first.acked_seq, second.acked_seq, third.acked_seq) == (2, 2, 3)
    assert (first.decisive, second.decisive, third.decisive) == (True, False, False)
    assert [point["step"] for point in running.rows("metric_points")] == [1, 2]
    assert [row["kind"] for row in running.rows("events")].count("save_failed") == 1
    assert running.rows("hosts")[0]["acked_seq"] == 3


def test_one_reports_unstorable_value_leaves_the_others_alone(gang: House) -> None:
    """The writer runs a failed batch again, piece by piece."""
    gang.ready()
    gang.attempt()
    writer = Writer(gang.engine)
    go = threading.Event()
    writer.submit(lambda _connection: go.wait(10))
    calls = [
        call(gang, gang.envelope(step(1))),
        call(gang, host=1, running_attempt=1 << 70),
        call(gang, gang.envelope(step(2))),
    ]
    futures = [
        writer.submit_batched(ingest.reports, ingest.Delivery(one, SECRET, gang.now))
        for one in calls
    ]
    go.set()
    assert isinstance(futures[1].exception(10), OverflowError | DataError)
    assert [futures[0].result(10).acked_seq, futures[2].result(10).acked_seq] == [1, 2]
    writer.close()
    assert [point["step"] for point in gang.rows("metric_points")] == [1, 2]


# ---- what becomes of events --------------------------------------------------------------------


def test_a_trainers_life_is_told_in_one_row(running: House) -> None:
    running.tell(
        {"kind": "trainer_started", "pid": 77, "numerics_key": "cpu"},
        {"kind": "phase", "phase": "train"},
        step(1),
        step(2),
        {"kind": "trainer_failed", "exit_code": 65, "error": "no such file", "hint": "mount it"},
        {"kind": "trainer_exited", "exit_code": 65, "last_lines": ["a", "b\0"]},
    )
    trainer = running.snapshot().trainers[0]
    assert (trainer.pid, trainer.phase, trainer.last_step) == (77, "train", 2)
    assert (trainer.exit_code, trainer.signal, trainer.exited_at) == (65, None, running.now)
    assert (trainer.failure, trainer.hint) == ("no such file", "mount it")
    assert trainer.last_lines == ("a", "b\ufffd")
    kinds = [row["kind"] for row in running.rows("events") if row["rank"] == 0]
    assert kinds == ["trainer_started", "phase", "trainer_failed", "trainer_exited"]


def test_the_first_start_and_step_of_the_attempt_are_marked(gang: House) -> None:
    gang.ready()
    gang.attempt()
    first = gang.tell({"kind": "phase", "phase": "spawn"}).decisive
    spawned = gang.now
    gang.tick()
    again = gang.tell({"kind": "phase", "phase": "import"}, host=1).decisive
    gang.tell(step(31))
    stepped = gang.now
    gang.tick()
    gang.tell(step(32))
    attempt = gang.snapshot().attempt
    assert attempt is not None
    assert (attempt.spawned_at, attempt.first_step_at) == (spawned, stepped)
    assert (first, again) == (True, False)


def test_a_hosts_clock_that_is_ahead_does_not_date_the_future(running: House) -> None:
    told = running.envelope({"kind": "trainer_exited", "exit_code": 1})
    ahead = told.model_copy(update={"at": running.now.replace(year=2090)})
    running.send(ahead)
    assert running.snapshot().trainers[0].exited_at == running.now


def test_numbers_that_are_none_are_kept_as_such(running: House) -> None:
    told = step(1, loss="NaN", grad_norm="Infinity", learning_rate="NaN")
    running.tell(told, {"kind": "eval", "step": 1, "loss": "NaN", "batches": 2, "seconds": 1})
    point = running.rows("metric_points")[0]
    assert (point["loss"], point["grad_norm"], point["learning_rate"]) == (None, None, 0.0)
    assert running.rows("evals")[0]["loss"] is None


def test_a_loss_is_stored_to_the_last_bit(running: House) -> None:
    exact = 0.1 + 0.2
    running.tell(step(1, loss=exact))
    assert running.rows("metric_points")[0]["loss"] == exact


def test_many_points_come_back_as_they_were_told(running: House) -> None:
    """More than one statement takes; the texts are those that SQL and arrays would read as more."""
    texts = ["NULL", "", '"', "\\", "{a,b}", "'", "\n", "é", "%s", "?"]
    told = [
        step(n, loss=n / 3, grad_norm="NaN" if n % 2 else n * 1e-300, batch_hash=texts[n % 10])
        for n in range(1, 124)
    ]
    running.tell(*told, {"kind": "log", "lines": texts})
    found = running.rows("metric_points")
    assert [row["step"] for row in found] == list(range(1, 124))
    for row, one in zip(found, told, strict=True):
        norm = None if one["grad_norm"] == "NaN" else one["grad_norm"]
        assert (row["loss"], row["grad_norm"]) == (one["loss"], norm)
        assert row["batch_hash"] == one["batch_hash"]
    assert [row["line"] for row in running.rows("log_lines")] == texts


def test_unknown_kinds_are_stored_untouched(running: House) -> None:
    told = {"kind": "of_a_later_version" * 5, "deep": {"a": [1, None]}, "zero": "\0"}
    stored = running.tell(told)
    row = running.rows("events")[-1]
    assert '"deep":{"a":[1,null]}' in str(row["body"])
    assert len(str(row["kind"])) == 40
    assert stored.kinds == {"unknown": 1}


@pytest.mark.parametrize(
    "envelope",
    [
        {"attempt": 9},
        {"rank": 1},
        {"rank": -1},
        {"attempt": 1 << 80},
        {"event": step(1 << 40)},
        {"event": {"kind": "trainer_started", "pid": 1 << 62}},
    ],
)
def test_what_names_no_attempt_of_its_host_is_dropped_and_acknowledged(
    running: House, envelope: dict[str, object]
) -> None:
    told = running.envelope(step(1)).model_dump() | envelope
    stored = running.send(type(running.envelope(step(2))).model_validate(told))
    assert (stored.dropped, stored.acked_seq) == (1, 1)
    assert running.rows("metric_points") == []


def test_another_runs_attempt_is_out_of_reach(running: House, engine: Engine) -> None:
    other = House(engine, run_id="r2", token=running.token)
    other.ready()
    other.attempt()
    other.tell(step(3))
    assert [(p["run_id"], p["step"]) for p in running.rows("metric_points")] == [("r2", 3)]
    with pytest.raises(callers.StaleAttempt):
        offer(other)
    assert running.rows("checkpoints") == []


def test_a_superseded_attempts_events_are_telemetry(running: House) -> None:
    started(running)
    end(running)
    running.attempt(2)
    before = running.rows("attempts")
    stored = running.tell(
        step(2),
        written(2),
        {"kind": "checkpoint_rejected", "checkpoint_id": "a1-s2", "reason": "x"},
        {"kind": "trainer_exited", "exit_code": 1},
        attempt=1,
    )
    assert stored.acked_seq == 6
    assert [(p["attempt"], p["step"]) for p in running.rows("metric_points")] == [(1, 1), (1, 2)]
    after = running.rows("attempts")
    assert after.pop(1) == before.pop(1) | {"replays_through": 2}, "it will train that again"
    assert after == before
    assert running.rows("checkpoints") == []
    assert running.rows("trainers")[0]["exit_code"] == 1


# ---- the ledger of checkpoints -----------------------------------------------------------------


def test_a_written_checkpoint_does_not_count_until_it_is_accepted(running: House) -> None:
    running.tell(written(5))
    assert running.rows("checkpoints")[0]["state"] == "written"
    assert running.snapshot().checkpoints == ()
    accepted = offer(running)
    assert accepted == CheckpointAccepted(
        run_id="r1",
        checkpoint_id="a1-s5",
        step=5,
        accepted_at=running.now,
        manifest_sha256="a" * 64,
    )
    snap = running.snapshot()
    assert [checkpoint.id for checkpoint in snap.checkpoints] == ["a1-s5"]
    assert snap.attempt is not None
    assert snap.attempt.accepted_step == 5


def test_an_offer_repeated_is_answered_the_same_and_telling_it_late_undoes_nothing(
    running: House,
) -> None:
    first = offer(running)
    assert offer(running) == first
    running.tell(written(5))
    assert running.rows("checkpoints")[0]["state"] == "accepted"
    kinds = [row["kind"] for row in running.rows("events")]
    assert kinds.count("checkpoint_accepted") == 1


def test_an_older_step_does_not_lower_what_was_reached(running: House) -> None:
    offer(running)
    offer(running, **written(3))
    assert running.rows("attempts")[0]["accepted_step"] == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint_id": "a2-s5"},
        {"uri": "/data/storage/runs/r1/a2/checkpoints/5"},
        {"uri": "/data/storage/runs/r1/a1/checkpoints/5/../../../../r2/a1/checkpoints/5"},
        {"uri": "/etc/passwd"},
        {"manifest_sha256": "a" * 65},
    ],
)
def test_offers_of_what_is_not_the_attempts_own(running: House, changes: dict) -> None:
    with pytest.raises(callers.StaleAttempt):
        offer(running, **changes)
    running.tell(written(5) | changes)
    assert running.rows("checkpoints") == []


def test_an_accepted_checkpoint_can_not_become_another(running: House) -> None:
    offer(running)
    with pytest.raises(callers.StaleAttempt, match="another manifest"):
        offer(running, manifest_sha256="c" * 64)


def test_a_superseded_attempts_checkpoint_is_refused(running: House) -> None:
    """Invariant 2: the ledger is as it was."""
    running.tell(written(5))
    end(running)
    before = running.rows("checkpoints")
    with pytest.raises(callers.StaleAttempt):
        offer(running)
    running.attempt(2)
    with pytest.raises(callers.StaleAttempt):
        offer(running)
    with pytest.raises(callers.OldInstance):
        offer(running, attempt=2, instance="i0")
    assert running.rows("checkpoints") == before
    offer(running, attempt=2, **written(5, 2))


def test_the_checkpoint_to_resume_from_can_be_rejected(running: House) -> None:
    offer(running)
    end(running)
    running.attempt(2, resume="a1-s5", step=5)
    rejected = {"kind": "checkpoint_rejected", "checkpoint_id": "a1-s5", "reason": "bad sum"}
    assert running.tell(rejected, attempt=2).decisive
    row = running.rows("checkpoints")[0]
    assert (row["state"], row["reason"]) == ("quarantined", "bad sum")
    with pytest.raises(callers.StaleAttempt):
        offer(running)


def test_no_other_checkpoint_can_be_rejected(running: House) -> None:
    offer(running)
    end(running)
    running.attempt(2)
    running.tell(
        {"kind": "checkpoint_rejected", "checkpoint_id": "a1-s5", "reason": "x"}, attempt=2
    )
    assert running.rows("checkpoints")[0]["state"] == "accepted"


def test_a_checkpoint_that_was_set_apart_while_it_was_saved_ends_no_trainer(
    running: House,
) -> None:
    """A refusal says that the attempt is stale, and its agent would kill a healthy trainer."""
    running.tell(written(5))
    asked = Quarantine("a1-s5", "the loss looks odd")
    with running.engine.begin() as connection:
        quarantine(connection, running.now, "r1", asked, Actor("ann", Role.OPERATOR, None))
    assert offer(running).checkpoint_id == "a1-s5"
    assert running.rows("checkpoints")[0]["state"] == "quarantined"
    assert running.rows("attempts")[0]["accepted_step"] is None
    assert running.snapshot().checkpoints == ()


def test_a_report_says_how_old_its_word_can_be(running: House) -> None:
    """A report can be long on its way; one that seems to come from the future says nothing."""
    first, now = running.now, running.tick(90)
    for answered_at, known in [(None, None), (first, first), (now + timedelta(days=1), None)]:
        running.now = now
        deliver(running, call(running, answered_at=answered_at))
        [host] = running.rows("hosts")
        assert (host["spoke_at"], host["last_seen_at"]) == (known, now)


def test_the_phases_of_process_0s_start_are_summed_up(gang: House) -> None:
    gang.ready()
    gang.attempt()
    for host in (0, 1):
        gang.tell(
            {"kind": "phase", "phase": "init", "previous": "import", "previous_seconds": 9},
            {"kind": "phase", "phase": "restore", "previous": "init", "previous_seconds": 1.5},
            {"kind": "phase", "phase": "compile", "previous": "restore", "previous_seconds": -1},
            {"kind": "phase", "phase": "init", "previous": "compile", "previous_seconds": 2},
            {"kind": "phase", "phase": "train", "previous": "init", "previous_seconds": 0.25},
            host=host,
        )
    [row] = gang.rows("attempts")
    assert (row["init_seconds"], row["compile_seconds"]) == (1.75, 2)
    assert row["restore_seconds"] is None, "no phase takes less than no time"


def test_how_fast_each_process_trains_is_known_and_how_fast_the_run_ever_did(gang: House) -> None:
    """A pace is telemetry: no line of the timeline, and nothing to decide at once."""
    gang.ready()
    gang.attempt()
    lines = len(gang.rows("events"))

    def pace(seconds: float, step: int) -> dict[str, object]:
        rest = {"steps": 10, "own": 0.25, "data_wait": 0.125}
        return {"kind": "pace", "step": step, "seconds": seconds, **rest}

    gang.tell(pace(1.5, 10), pace(0.5, 20), pace(1.0, 30), host=0)
    gang.tell(pace(0.25, 30), pace(float("inf"), 40), host=1)
    first, second = gang.snapshot().trainers
    assert first.pace is not None
    assert second.pace is not None
    assert (first.pace.step, first.pace.seconds) == (30, 1.0)
    assert (second.pace.step, second.pace.seconds, second.pace.own) == (30, 0.25, 0.25)
    assert gang.snapshot().attempts[-1].best_pace_seconds == 0.5
    assert len(gang.rows("events")) == lines
