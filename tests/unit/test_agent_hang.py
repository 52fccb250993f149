"""When a trainer counts as hung, and what is seen of it before it is ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.fakes.agent import TRAINER
from tests.fakes.stage import start_trainer
from worker import stacks, watches
from worker.hang import Vigil
from worker.host import HostFolder
from worker.protocol import (
    PROCESS_WAS,
    STOPPED_PROCESS,
    HangSpec,
    KilledFor,
    KnownEvent,
    Phase,
    PhaseEntered,
    Saving,
    StacksTaken,
    StepBeat,
    TrainerExited,
    Unknown,
)
from worker.supervise import Trainer

Kind = TypeVar("Kind")
LIMITS = HangSpec(
    start_seconds=10,
    restore_seconds=20,
    compile_seconds=30,
    step_seconds=40,
    step_factor=10,
    save_seconds=500,
    eval_seconds=50,
)


def step(seconds: float = 1.0) -> StepBeat:
    return StepBeat(step=1, seconds=seconds, data_wait=0.0)


def training(steps: int = 1, seconds: float = 1.0) -> Vigil:
    """A vigil over a trainer that made its last step at time 0."""
    vigil = Vigil(LIMITS, -1.0)
    vigil.saw(PhaseEntered(phase=Phase.TRAIN), -1.0)
    for _ in range(steps):
        vigil.saw(step(seconds), 0.0)
    return vigil


@pytest.mark.parametrize(
    ("phase", "limit"),
    [
        (Phase.SPAWN, 10),
        (Phase.IMPORT, 10),
        (Phase.INIT, 10),
        (Phase.RESTORE, 20),
        (Phase.COMPILE, 30),
        (Phase.TRAIN, 30),
        (Phase.EVAL, 50),
    ],
)
def test_each_phase_has_a_limit_of_its_own(phase: Phase, limit: float) -> None:
    vigil = Vigil(LIMITS, 0.0)
    vigil.saw(PhaseEntered(phase=phase), 100.0)
    assert vigil.overdue(100.0 + limit) is None
    words = vigil.overdue(100.0 + limit + 1)
    assert words is not None
    assert f"its limit is {limit} s" in words


def test_the_last_checkpoint_may_take_as_long_as_the_control_plane_is_away() -> None:
    vigil = Vigil(LIMITS, 0.0)
    vigil.saw(PhaseEntered(phase=Phase.FINISH), 0.0)
    assert vigil.overdue(1e6) is None


def test_a_step_may_take_what_the_spec_says_or_ten_times_what_steps_take() -> None:
    assert training(1).overdue(40.0) is None
    assert training(1).overdue(41.0) is not None
    slow = training(50, seconds=20.0)
    assert slow.overdue(200.0) is None
    words = slow.overdue(201.0)
    assert words is not None
    assert "10 x 20.00 s" in words


def test_steps_beside_saves_and_evals_do_not_count_as_usual() -> None:
    vigil = training(1)
    for _ in range(50):
        vigil.saw(Saving(step=1, active=True), 0.0)
        vigil.saw(step(400.0), 0.0)
        vigil.saw(Saving(step=1, active=False), 0.0)
        vigil.saw(PhaseEntered(phase=Phase.EVAL), 0.0)
        vigil.saw(PhaseEntered(phase=Phase.TRAIN), 0.0)
        vigil.saw(step(400.0), 0.0)
    assert vigil.overdue(41.0) is not None


def test_a_step_beside_a_save_and_the_save_itself_have_the_saves_limit() -> None:
    vigil = training(1)
    vigil.saw(Saving(step=1, active=True), 0.0)
    assert vigil.overdue(499.0) is None
    vigil.saw(step(), 499.0)  # steps go on, yet the save does not end
    words = vigil.overdue(501.0)
    assert words is not None
    assert words.startswith("a save went on for 501 s")
    vigil.saw(Saving(step=1, active=False), 501.0)
    assert vigil.overdue(541.0) is None
    assert vigil.overdue(542.0) is not None


def test_the_time_that_the_agent_itself_stood_still_is_not_held_against_the_trainer() -> None:
    vigil = training(1)
    vigil.slept(1000.0)
    assert vigil.overdue(1040.0) is None
    assert vigil.overdue(1041.0) is not None


# ---- what is seen of it ------------------------------------------------------------------------

PROGRAM = """
import faulthandler, signal, sys, threading
faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
def reader_that_waits():
    threading.Event().wait()
threading.Thread(target=reader_that_waits, daemon=True).start()
def trains_no_more():
    print("ready", flush=True)
    threading.Event().wait()
trains_no_more()
"""


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[[str], tuple[int, Path]]]:
    """Starts a program whose output goes to a file; it has printed its first line."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> tuple[int, Path]:
        output = tmp_path / "log"
        with output.open("wb") as log:
            process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)
        started.append(process)
        while b"ready" not in output.read_bytes():
            assert process.poll() is None, output.read_text()
        return process.pid, output

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_stacks_of_every_thread_are_taken(spawn: Callable[[str], tuple[int, Path]]) -> None:
    pid, output = spawn(PROGRAM)
    seen = asyncio.run(stacks.take(pid, output))
    assert seen.state == "sleeping"
    assert not seen.stopped
    assert "in reader_that_waits" in seen.text
    assert seen.place is not None
    assert "trains_no_more (<string>:9)" in seen.place
    assert seen.text.count("thread ") >= 2


def test_a_stopped_process_is_seen_to_be_stopped(spawn: Callable[[str], tuple[int, Path]]) -> None:
    pid, output = spawn(PROGRAM)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    seen = asyncio.run(stacks.take(pid, output))
    assert seen.stopped
    assert seen.state == "stopped (SIGSTOP)"
    assert f"{PROCESS_WAS} {seen.state}".startswith(STOPPED_PROCESS), "the verdict looks for it"
    assert seen.place is None


def test_a_process_that_writes_no_stacks_is_not_killed_by_the_question(
    spawn: Callable[[str], tuple[int, Path]],
) -> None:
    pid, output = spawn("import time\nprint('ready', flush=True)\ntime.sleep(60)")
    seen = asyncio.run(stacks.take(pid, output))
    assert seen.state == "sleeping"
    assert seen.place is None
    os.kill(pid, 0)


def test_of_a_process_that_is_gone_nothing_is_seen(tmp_path: Path) -> None:
    seen = asyncio.run(stacks.take(2**22 + 1, tmp_path / "log"))
    assert (seen.state, seen.text, seen.stopped) == ("gone", "", False)


# ---- its end -----------------------------------------------------------------------------------


class Watched:
    """A trainer that lingers, under an agent that has nobody to talk to."""

    def __init__(self, folder: Path) -> None:
        self.folder = HostFolder(folder)
        self.folder.prepare()
        self.told: list[KnownEvent | Unknown] = []
        self.started = asyncio.Event()
        argv = (sys.executable, "-S", "-E", str(TRAINER), "--steps=1", "--linger")
        self.trainer = Trainer(self.folder, start_trainer(), argv, self._hear)

    def _hear(self, event: KnownEvent | Unknown) -> None:
        self.told.append(event)
        if event.kind == "step":
            self.started.set()

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.told if isinstance(event, kind)]

    async def hang(self) -> None:
        await asyncio.wait_for(self.started.wait(), 60)
        self.trainer.slept(-1e5)


def test_an_agent_ends_a_trainer_that_hangs_and_says_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "WATCH_SECONDS", 0.01)

    async def scene() -> Watched:
        watched = Watched(tmp_path / "host")
        running = asyncio.ensure_future(watched.trainer.run())
        watching = asyncio.ensure_future(watches.for_hangs(lambda: watched.trainer))
        await watched.hang()
        await asyncio.wait_for(running, 60)
        watching.cancel()
        return watched

    watched = asyncio.run(scene())
    [taken] = watched.of(StacksTaken)
    [exited] = watched.of(TrainerExited)
    assert watched.told.index(taken) < watched.told.index(exited)
    assert taken.state == "sleeping"
    assert taken.stacks.startswith("thread ")
    assert exited.killed_for is KilledFor.HUNG
    assert exited.why_killed is not None
    assert "policy.hang." in exited.why_killed


@pytest.mark.parametrize(
    ("reason", "told"),
    [(KilledFor.SUPERSEDED, KilledFor.HUNG), (KilledFor.LEAVING, KilledFor.LEAVING)],
)
def test_a_trainer_that_was_stopped_is_the_cause_of_its_gangs_end(
    tmp_path: Path, reason: KilledFor, told: KilledFor
) -> None:
    """Its siblings abort first, when its heartbeats stop; their end is only a consequence."""

    async def scene() -> Watched:
        watched = Watched(tmp_path / "host")
        running = asyncio.ensure_future(watched.trainer.run())
        await watched.hang()
        assert watched.trainer._process is not None
        watched.trainer._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, watched.trainer._process.pid, os.WSTOPPED | os.WNOWAIT)
        await watched.trainer.end("the trainer on host 1 was killed by SIGABRT", reason)
        await running
        return watched

    watched = asyncio.run(scene())
    [exited] = watched.of(TrainerExited)
    assert exited.killed_for is told
    assert exited.why_killed is not None
    assert ("stopped (SIGSTOP)" in exited.why_killed) is (told is KilledFor.HUNG)
    assert watched.of(StacksTaken)[0].state == "stopped (SIGSTOP)"


def test_a_trainer_that_gets_on_is_killed_at_once(tmp_path: Path) -> None:
    async def scene() -> Watched:
        watched = Watched(tmp_path / "host")
        running = asyncio.ensure_future(watched.trainer.run())
        await asyncio.wait_for(watched.started.wait(), 60)
        await watched.trainer.end("attempt 2 takes its place", KilledFor.SUPERSEDED)
        await running
        return watched

    watched = asyncio.run(scene())
    assert watched.of(StacksTaken) == []
    assert watched.of(TrainerExited)[0].killed_for is KilledFor.SUPERSEDED
