"""What an agent is told follows from rows alone, the same bytes from the same rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update

from orchestrator.reconcile.plan import EndAttempt, MoveAttempt, MoveGroup
from orchestrator.state import AttemptCause, GroupCause, Verdict
from orchestrator.store import commands, ingest, tables
from tests.contract.conftest import SECRET, House
from tests.contract.test_store_writes import checkpoint
from worker.protocol import AgentReport, Command, ExitCode, LeaveAt, StandBy

STARTED = {"kind": "trainer_started", "pid": 5}
STEP = {"kind": "beat", "step": 3, "seconds": 0.1, "data_wait": 0.0}


def told(house: House, host: int = 0) -> tuple[Command, ...]:
    with house.engine.connect() as connection:
        return commands.commands_for(connection, house.group, host, "/data/storage")


def words(house: House, host: int = 0) -> list[str]:
    """Each command's kind, with the attempt where it names one."""
    return [
        f"{command.kind} {getattr(command, 'attempt', '')}".strip() for command in told(house, host)
    ]


def exited(code: int | None = None, signal: int | None = None) -> dict[str, object]:
    return {"kind": "trainer_exited", "exit_code": code, "signal": signal}


def begin(gang: House) -> None:
    gang.ready()
    gang.attempt()


def both_run(gang: House) -> None:
    begin(gang)
    for host in (0, 1):
        gang.tell(STARTED, STEP, host=host, running=1)


def stop(gang: House, wish: str = "pause") -> None:
    with gang.engine.begin() as connection:
        connection.execute(update(tables.runs).values(desired=wish, desired_generation=2))
    gang.commit(MoveAttempt(1, AttemptCause.STOP_ASKED))


def end(gang: House) -> None:
    gang.commit(EndAttempt(1, Verdict.CRASHED, "it fell", ()))


def fails(gang: House) -> None:
    both_run(gang)
    gang.tell(exited(signal=9), host=0)


def finishes(gang: House) -> None:
    both_run(gang)
    gang.tell(exited(0), host=0)


def drains_first(gang: House) -> None:
    both_run(gang)
    stop(gang)
    gang.tell(exited(ExitCode.DRAINED), host=0)


def fails_while_draining(gang: House) -> None:
    both_run(gang)
    stop(gang)
    gang.tell(exited(ExitCode.PEER_LOST), host=0)


def draining(gang: House) -> None:
    both_run(gang)
    stop(gang)


def cancelled(gang: House) -> None:
    both_run(gang)
    stop(gang, "cancel")


def superseded(gang: House) -> None:
    both_run(gang)
    end(gang)
    gang.attempt(2)


def ended(gang: House) -> None:
    both_run(gang)
    end(gang)


def releasing(gang: House) -> None:
    both_run(gang)
    gang.commit(MoveGroup(gang.group, GroupCause.NOT_WANTED))


def comes_back_too_late(gang: House) -> None:
    """It was cut off, counts as lost, and trains on."""
    ended(gang)
    gang.commit(MoveGroup(gang.group, GroupCause.NOT_WANTED))


def replaced(gang: House) -> None:
    """The second agent came after the attempt was made."""
    begin(gang)
    gang.tick()
    gang.register(1, "i2")


def fails_before_the_other_starts(gang: House) -> None:
    begin(gang)
    gang.tell(STARTED, exited(1), host=0)


def lives_on_after_burial(gang: House) -> None:
    both_run(gang)
    gang.tell(exited(1), host=1, running=1)


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (House.ready, []),
        (begin, ["start"]),
        (both_run, []),
        (fails, ["kill 1"]),
        (finishes, []),
        (draining, ["drain 1"]),
        (drains_first, ["drain 1"]),
        (fails_while_draining, ["kill 1"]),
        (cancelled, ["kill 1"]),
        (ended, ["kill 1"]),
        (superseded, ["kill 1"]),
        (releasing, ["retire"]),
        (comes_back_too_late, ["kill 1", "retire"]),
        (replaced, []),
        (fails_before_the_other_starts, ["kill 1"]),
        (lives_on_after_burial, ["kill 1"]),
    ],
)
def test_the_second_hosts_commands(
    gang: House, situation: Callable[[House], None], expected: list[str]
) -> None:
    situation(gang)
    assert words(gang, host=1) == expected
    assert commands.commands_digest(told(gang, 1)) == commands.commands_digest(told(gang, 1))


def test_a_start_names_the_rank_and_the_whole_attempt(gang: House) -> None:
    begin(gang)
    first, second = told(gang, 0)[0], told(gang, 1)[0]
    assert (first.kind, first.rank, second.rank) == ("start", 0, 1)  # pyright: ignore
    assert first.spec == second.spec  # pyright: ignore
    assert first.spec.process_count == 2  # pyright: ignore


def test_a_kill_says_what_it_follows_from(gang: House) -> None:
    fails(gang)
    reason = told(gang, 1)[0].reason  # pyright: ignore
    assert reason == "the trainer on host 0 was killed by SIGKILL after step 3"
    assert words(gang, host=0) == []


def test_a_drain_carries_the_policys_grace(gang: House) -> None:
    draining(gang)
    assert told(gang, 0)[0].grace_seconds == 60.0  # pyright: ignore


def test_unknown_hosts_are_told_nothing(gang: House) -> None:
    begin(gang)
    assert words(gang, host=7) == []
    with gang.engine.connect() as connection:
        assert commands.commands_for(connection, "nobody", 0, "/x") == ()


def test_no_commands_have_no_digest(gang: House) -> None:
    assert commands.commands_digest(()) == ""
    begin(gang)
    assert len(commands.commands_digest(told(gang))) == 64


# ---- a trainer that never was ------------------------------------------------------------------


@pytest.mark.parametrize("situation", [fails_before_the_other_starts, None])
def test_a_trainer_that_is_never_started_is_recorded_as_ended(
    gang: House, situation: Callable[[House], None] | None
) -> None:
    """Only once its agent has the stop in hand: until then it may be about to start it."""
    if situation:
        situation(gang)
    else:
        begin(gang)
        stop(gang)
    digest = commands.commands_digest(told(gang, 1))
    assert not gang.send(host=1, known="something older").exits
    assert not gang.send(host=1, known=digest, running=1).exits
    assert words(gang, host=1) != []
    assert gang.send(host=1, known=digest).exits
    row = next(trainer for trainer in gang.snapshot().trainers if trainer.rank == 1)
    assert (row.exited, row.killed_by_agent, row.exit_code) == (True, True, None)
    assert row.why_killed is not None
    assert row.why_killed.startswith("never started; ")
    assert words(gang, host=1) == []


def test_a_trainer_that_was_started_is_not(gang: House) -> None:
    draining(gang)
    digest = commands.commands_digest(told(gang, 1))
    assert not gang.send(host=1, known=digest).exits


def test_nothing_is_recorded_while_the_attempt_is_wanted(gang: House) -> None:
    begin(gang)
    digest = commands.commands_digest(told(gang, 1))
    assert not gang.send(host=1, known=digest).exits


# ---- spares that stand by ----------------------------------------------------------------------


def report(gang: House, host: int, place: str | None = None, ready: bool = False) -> ingest.Stored:
    call = AgentReport(
        group=gang.group,
        host=host,
        instance="i1",
        running_attempt=1,
        standby=place,
        standby_ready=ready,
    )
    with gang.engine.begin() as connection:
        return ingest.report(connection, call, SECRET, gang.now)


def test_the_other_hosts_are_told_where_the_spare_of_host_0_is_to_be_met(gang: House) -> None:
    both_run(gang)
    assert report(gang, 0, "127.0.0.1:4555").exits, "the other hosts wait for it"
    assert not report(gang, 0, "127.0.0.1:4555", ready=True).exits, "they know that"
    assert told(gang, 0) == ()
    assert told(gang, 1) == (StandBy(attempt=1, coordinator="127.0.0.1:4555"),)
    first, second = gang.snapshot().hosts
    assert (first.standby, first.standby_ready) == ("127.0.0.1:4555", True)
    assert (second.standby, second.standby_ready) == (None, False)
    assert report(gang, 0).exits
    assert told(gang, 1) == ()


def test_a_spare_that_stands_by_is_told_of_the_newest_checkpoint(gang: House) -> None:
    both_run(gang)
    report(gang, 0, "127.0.0.1:4555")
    for step in (5, 9):
        checkpoint(gang, step)
    [command] = told(gang, 1)
    assert isinstance(command, StandBy)
    assert command.point is not None
    assert (command.point.checkpoint_id, command.point.step) == ("b1-s9", 9)


def test_a_new_agent_has_no_spare(gang: House) -> None:
    both_run(gang)
    report(gang, 0, "127.0.0.1:4555", ready=True)
    gang.register(0, "i2")
    assert gang.snapshot().hosts[0].standby is None
    assert told(gang, 1) == ()


def test_a_place_that_is_no_address_is_not_kept(gang: House) -> None:
    both_run(gang)
    report(gang, 0, "x" * 101, ready=True)
    assert gang.snapshot().hosts[0].standby is None


def leave(gang: House, host: int) -> list[LeaveAt]:
    return [one for one in told(gang, host) if isinstance(one, LeaveAt)]


def offers(gang: House, host: int, after: int) -> bool:
    return gang.tell({"kind": "leave_offered", "after": after}, host=host, running=1).exits


@pytest.mark.parametrize("asked", [draining, both_run])
def test_the_processes_of_a_program_leave_after_the_same_step(
    gang: House, asked: Callable[[House], None]
) -> None:
    """Asked by a person, or by one host's end alone."""
    asked(gang)
    before = words(gang, 0)
    assert leave(gang, 0) == leave(gang, 1) == []
    assert offers(gang, 1, 7), "it wakes the other host's agent"
    assert leave(gang, 1) == [], "it waits for the other one"
    assert leave(gang, 0) == [LeaveAt(attempt=1)]
    assert offers(gang, 0, 9)
    assert leave(gang, 0) == leave(gang, 1) == [LeaveAt(attempt=1, step=10)]
    assert words(gang, 0) == [*before, "leave_at 1"]
    gang.tell(exited(ExitCode.DRAINED), host=0)
    assert leave(gang, 1) == [LeaveAt(attempt=1, step=10)], "it is not there yet"


def test_one_that_is_done_already_is_not_waited_for(gang: House) -> None:
    finishes(gang)
    offers(gang, 1, 7)
    assert leave(gang, 1) == [LeaveAt(attempt=1, step=8)]
