"""The trainer's end of the socket: what goes out, what comes in, and that it never waits."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.fakes.tiny import attempt, tiny_job
from worker.protocol import (
    EVENT,
    CheckpointAccepted,
    Phase,
    StartTrainer,
    StepBeat,
    ToTrainerAccepted,
)
from worker.report import AgentLink, PhaseClock

ORDER = StartTrainer(spec=attempt(tiny_job(Path("/text")), Path("/runs")), rank=1)


class Ends:
    """A link, and the agent's side of it."""

    def __init__(self) -> None:
        self.agent, trainer = socket.socketpair()
        self.say(ORDER.model_dump_json())
        self.link = AgentLink(trainer)
        self.lines = self.agent.makefile("r")

    def say(self, line: str) -> None:
        self.agent.sendall(line.encode() + b"\n")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    left: list[int] = []
    monkeypatch.setattr("worker.report.os._exit", left.append)
    ends = Ends()
    assert ends.link.start() == ORDER
    assert left == []
    yield ends
    ends.lines.close()
    ends.agent.shutdown(socket.SHUT_RDWR)
    ends.link.close()
    ends.agent.close()
    assert left, "the trainer stays when its agent is gone"


def test_events_arrive_one_a_line_with_the_time_of_each_phase(ends: Ends) -> None:
    clock = PhaseClock(ends.link)
    clock.enter(Phase.IMPORT)
    clock.enter(Phase.IMPORT)
    clock.enter(Phase.INIT)
    ends.link.send(StepBeat(step=4, seconds=0.5, data_wait=0.25))
    events = [EVENT.validate_json(ends.lines.readline()) for _ in range(3)]
    assert [(e.kind, getattr(e, "phase", None)) for e in events] == [
        ("phase", Phase.IMPORT),
        ("phase", Phase.INIT),
        ("beat", None),
    ]
    assert events[1].previous == Phase.IMPORT
    assert events[1].previous_seconds >= 0
    assert ends.link.flush(5)


def test_sending_never_waits_for_a_deaf_agent(ends: Ends) -> None:
    event = StepBeat(step=1, seconds=0.0, data_wait=0.0)
    for _ in range(50_000):  # more than a socket's buffer
        ends.link.send(event)
    assert not ends.link.flush(0.05)


def test_acceptance_is_kept_before_it_is_told(ends: Ends) -> None:
    kept: list[str] = []
    ends.link.keep_acceptances(lambda acceptance: kept.append(acceptance.checkpoint_id))
    assert ends.link.accepted("a1-s5", seconds=0) is None
    acceptance = CheckpointAccepted(
        run_id="r1",
        checkpoint_id="a1-s5",
        step=5,
        accepted_at=datetime(2026, 1, 1, tzinfo=UTC),
        manifest_sha256="0",
    )
    ends.say(ToTrainerAccepted(acceptance=acceptance).model_dump_json())
    assert ends.link.accepted("a1-s5", seconds=5) == acceptance
    assert kept == ["a1-s5"]


def test_unknown_command_is_ignored_and_the_next_one_obeyed(
    ends: Ends, capsys: pytest.CaptureFixture[str]
) -> None:
    ends.say(json.dumps({"kind": "dance"}))
    ends.say(json.dumps({"kind": "drain"}))
    assert ends.link.drain.wait(5)
    assert "ignored a command" in capsys.readouterr().err
