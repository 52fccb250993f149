"""The demo: when it kills, what counts as success, and that nothing of it stays behind."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.api.history_schemas import EventView, MetricPoint
from orchestrator.api.schemas import AttemptView
from orchestrator.cli import demo, demo_service
from orchestrator.cli.demo_flow import Flow
from orchestrator.cli.demo_outcome import (
    Kill,
    Outcome,
    is_due,
    measure,
    shortcoming,
    summary_rows,
)
from orchestrator.cli.demo_service import (
    Interrupted,
    Interrupts,
    OwnService,
    interruptible,
    kill_trainer,
    make_folder,
    processes_of,
    sweep,
)
from orchestrator.cli.main import app
from orchestrator.cli.options import CommandFailed
from orchestrator.client import Client, Endpoint
from orchestrator.state import AttemptState, CheckpointState, RunState, Verdict
from tests.fakes import rest_service as fake

KILL = Kill(attempt=1, pid=4711, step=91, at=fake.after(24.5))
KEYS = [
    "run", "state", "steps", "attempts", "verdicts", "resumed_from_step", "replayed_steps",
    "replayed_bit_identical", "recovery_seconds", "goodput", "final_loss", "dashboard",
]  # fmt: skip


def finished(**changes: Any) -> AttemptView:
    ended = {"state": AttemptState.ENDED, "verdict": Verdict.COMPLETED, "ended_at": fake.after(60)}
    return fake.recovered().model_copy(update=ended | changes)


def point(step: int, attempt: int, at: float) -> MetricPoint:
    return MetricPoint(
        step=step, attempt=attempt, at=fake.after(at), loss=3.0, grad_norm=1.0,
        learning_rate=0.003, tokens=2048, seconds=0.1, data_wait=0.0, batch_hash="b",
    )  # fmt: skip


def outcome(**changes: Any) -> Outcome:
    made = measure(
        fake.done(), [fake.crashed(), finished()], KILL, point(76, 2, 27.0), 0.913, "http://d"
    )
    return Outcome(**(made.as_dict() | {"verdicts": made.verdicts} | changes))


@pytest.mark.parametrize(
    ("step", "saved", "due"),
    [
        (89, 75, False),  # before 45%
        (90, 75, True),
        (97, 75, True),
        (98, 75, False),  # the save at 100 is near
        (103, 100, False),  # nothing to train again yet
        (106, 100, True),
        (110, None, False),
        (160, 125, True),  # late: any replay will do
        (200, 175, False),
    ],
)
def test_the_moment_of_the_kill(step: int, saved: int | None, due: bool) -> None:
    newest = None if saved is None else fake.checkpoint(1, saved)
    assert is_due(fake.run(step=step, newest_checkpoint=newest)) is due


def test_only_a_checkpoint_that_counts_and_a_run_that_trains() -> None:
    written = fake.checkpoint(1, 75, state=CheckpointState.WRITTEN)
    assert not is_due(fake.run(step=91, newest_checkpoint=written))
    assert not is_due(
        fake.run(step=91, newest_checkpoint=fake.checkpoint(), state=RunState.RECOVERING)
    )


def test_the_figures() -> None:
    made = outcome()
    assert list(made.as_dict()) == KEYS
    assert made.as_dict() | {"final_loss": 0} == {
        "run": "demo-1m",
        "state": "succeeded",
        "steps": 200,
        "attempts": 2,
        "verdicts": ("crashed", "completed"),
        "resumed_from_step": 75,
        "replayed_steps": 16,
        "replayed_bit_identical": True,
        "recovery_seconds": 2.5,
        "goodput": 0.913,
        "final_loss": 0,
        "dashboard": "http://d",
    }


def test_the_recovery_is_timed_by_the_attempt_where_the_step_is_not_known() -> None:
    made = measure(fake.done(), [fake.crashed(), finished()], KILL, None, None, "")
    assert made.recovery_seconds == 3.5


def test_a_run_without_a_kill_has_no_recovery() -> None:
    made = measure(fake.done(), [finished(number=1)], None, None, 0.9, "")
    assert (made.resumed_from_step, made.recovery_seconds, made.replayed_steps) == (None, None, 0)


def test_attempts_after_the_next_count_too() -> None:
    third = finished(number=3, replayed_steps=4, replayed_bit_identical=False)
    second = finished(verdict=Verdict.CRASHED)
    made = measure(fake.done(), [fake.crashed(), second, third], KILL, None, 0.9, "")
    assert made.replayed_bit_identical is False
    assert made.resumed_from_step == 75
    assert made.verdicts == ("crashed", "crashed", "completed")


@pytest.mark.parametrize(
    ("changes", "kill", "says"),
    [
        ({}, KILL, None),
        ({"state": "failed"}, KILL, "the run is failed"),
        ({"state": "paused", "steps": 91}, KILL, "paused at step 91"),
        ({}, None, "before its trainer could be killed"),
        ({"verdicts": ("host_lost", "completed")}, KILL, "not judged a crash"),
        ({"replayed_steps": 4}, KILL, "only 4 steps"),
        ({"replayed_steps": 5}, KILL, None),
        ({"replayed_bit_identical": None}, KILL, "not compared"),
        ({"replayed_bit_identical": False}, KILL, "differ"),
    ],
)
def test_what_counts_as_success(
    changes: dict[str, Any], kill: Kill | None, says: str | None
) -> None:
    told = shortcoming(outcome(**changes), kill)
    assert told is None if says is None else says in (told or "")


def test_the_summary_tells_the_whole_story() -> None:
    told = dict(summary_rows(outcome(), [fake.crashed(), finished()], KILL))
    assert told["Killed"] == "trainer 4711 of attempt 1, with SIGKILL at step 91"
    assert told["Noticed"] == "0.50 s later, verdict: crashed"
    assert told["Resumed"] == "by itself from checkpoint a1-s75, step 75, as attempt 2"
    assert told["Replayed"] == "16 steps trained again, bit-identical"
    assert told["Recovered"] == "2.5 s from the kill to the next completed step"
    assert told["Goodput"] == "91.3%"


# ---- processes ---------------------------------------------------------------------------------


SLEEPER = "import time; time.sleep(60)"


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, cwd: Path) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", SLEEPER, *words], cwd=cwd))
        pid = started[-1].pid
        # Between fork and exec a child still shows its parent's words.
        wait_for(lambda: SLEEPER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes())
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_only_longhauls_own_processes_of_a_kept_folder_are_swept(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder, other = tmp_path / "demo", tmp_path / "demo-2"
    folder.mkdir()
    other.mkdir()
    agent = spawn("worker.agent", cwd=folder)
    told = spawn("worker.trainer", f"{folder}/hosts/0", cwd=other)
    shell = spawn("somebody's shell", cwd=folder)
    foreign = spawn("worker.agent", f"{other}/hosts/0", cwd=other)
    assert processes_of(folder) == sorted([agent.pid, told.pid])
    assert shell.pid in processes_of(folder, everything=True)
    assert sweep(folder) == []
    assert agent.wait(5) == told.wait(5) == -signal.SIGKILL
    assert shell.poll() is None
    assert foreign.poll() is None


def test_only_a_trainer_of_the_folder_is_killed(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder, other = tmp_path / "demo", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    agent, elsewhere = spawn("worker.agent", cwd=folder), spawn("worker.trainer", cwd=other)
    trainer = spawn("worker.trainer", cwd=folder)
    assert not kill_trainer(agent.pid, folder)
    assert not kill_trainer(elsewhere.pid, folder)
    assert kill_trainer(trainer.pid, folder)
    assert trainer.wait(5) == -signal.SIGKILL
    assert not kill_trainer(trainer.pid, folder)
    assert agent.poll() is None
    assert elsewhere.poll() is None


def test_a_stopped_service_takes_its_processes_and_its_folder_along(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    service = OwnService(folder, temporary=True, process=spawn("orchestrator.cli.main", cwd=folder))
    stubborn = spawn("worker.agent", cwd=folder)
    assert service.stop(lambda: True)
    assert stubborn.wait(5) == -signal.SIGKILL
    assert not folder.exists()


def test_a_kept_folder_is_kept(tmp_path: Path) -> None:
    service = make_folder(tmp_path / "new")
    assert service.stop(lambda: False)
    assert (tmp_path / "new").is_dir()


def test_a_full_disk_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 4096))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CommandFailed, match="disk is full") as caught:
        make_folder(None)
    assert "--data DIR" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandFailed, match="cannot write"):
        make_folder(tmp_path / "file" / "demo")


def test_the_first_signal_interrupts_and_the_second_hurries() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interrupts:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert not interrupts.hurried
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.hurried
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_before_the_service_starts_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: Path | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(demo_service, "make_folder", interrupted)
    monkeypatch.setattr(demo, "_check_trainer", lambda: None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 128 + signal.SIGINT, result.exception


def test_a_signal_while_closing_never_interrupts() -> None:
    interrupts = Interrupts(closing=True)
    interrupts.handle(signal.SIGINT, None)
    assert interrupts.hurried


@pytest.fixture
def as_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Makes the demo start this program instead of the service, in a folder that is returned."""

    def use(program: str) -> Path:
        script = tmp_path / "service"
        script.write_text(f"#!{sys.executable}\n{program}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        base = tmp_path / "temporary"
        base.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(base))
        monkeypatch.setattr(demo, "_check_trainer", lambda: None)
        return base

    return use


def test_a_service_that_cannot_start_says_why_and_leaves_nothing(
    as_service: Callable[[str], Path],
) -> None:
    base = as_service("import sys; sys.exit('port 8700 is taken')")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "port 8700 is taken" in result.stderr
    assert list(base.iterdir()) == []


def test_a_service_that_never_gets_ready_is_ended(
    as_service: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = as_service(SLEEPER)
    monkeypatch.setattr(demo_service, "READY_SECONDS", 0.3)
    result = CliRunner().invoke(app, ["demo", "--json"])
    assert result.exit_code == 1
    assert "not ready" in result.stderr
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_demo_ends_everything(
    as_service: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    base = as_service(SLEEPER)
    seen: list[int] = []

    def strike(service: OwnService) -> bool:
        assert service.process is not None
        seen.append(service.process.pid)
        os.kill(os.getpid(), number)
        return False

    monkeypatch.setattr(OwnService, "_is_ready", strike)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 128 + number
    assert list(base.iterdir()) == []
    assert not Path(f"/proc/{seen[0]}").exists()


def test_the_flow_kills_the_newest_trainer_and_tells_the_phases(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Against a small service: submit, the kill at its moment, the recovery, the figures."""
    trainer = spawn("worker.trainer", cwd=tmp_path)
    training = fake.run(step=91, newest_checkpoint=fake.checkpoint())
    recovering = fake.run(step=91, state=RunState.RECOVERING, attempt=2, attempts=2)
    service = fake.FakeService(
        events=[
            _event(1, 1, "trainer_started", pid=1),
            _event(2, 1, "trainer_started", pid=trainer.pid),
        ],
        attempts=[fake.crashed(), finished()],
    )
    service.points = [point(76, 2, 27.0)]
    told: list[str] = []

    class Screen:
        show = lost = staticmethod(lambda _: None)
        tell = staticmethod(lambda news: told.append(news.words))

    with fake.served(service), Client(lambda: Endpoint(service.url, fake.TOKEN)) as client:
        flow = Flow(OwnService(tmp_path, temporary=False), client)
        submitted = flow.submit()
        service.events = [*service.events, _event(3, 2, "phase", phase="restore")]
        looks = [fake.run(step=20), training, recovering, fake.done()]
        service.script.extend(
            (
                look.model_copy(update={"id": submitted.id}),
                (fake.attempt(),) if look.attempt == 1 else (fake.crashed(), _early()),
            )
            for look in looks
        )
        flow.follow(Screen())  # pyright: ignore[reportArgumentType]
        service.attempts = [fake.crashed(), finished()]
        figures = flow.outcome()
    assert trainer.wait(5) == -signal.SIGKILL
    assert flow.kill is not None
    assert (flow.kill.pid, flow.kill.step, flow.kill.attempt) == (trainer.pid, 91, 1)
    assert "KILLED" in told[0]
    assert told[1].endswith("it restores the checkpoint and checks every digest")
    assert figures.state == "succeeded"
    assert figures.replayed_steps == 16
    assert figures.dashboard == f"{service.url}/runs/demo-1m"


def _early() -> AttemptView:
    return fake.recovered().model_copy(update={"last_step": None, "first_step_at": None})


def _event(number: int, attempt: int, kind: str, **body: object) -> EventView:
    at = fake.START + timedelta(seconds=number)
    return EventView(id=number, attempt=attempt, rank=0, kind=kind, at=at, body=dict(body))


def test_the_dashboard_stays_up_until_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([None, Interrupted(signal.SIGINT)])

    def check(_: OwnService) -> None:
        if (look := next(looks)) is not None:
            raise look

    monkeypatch.setattr(OwnService, "check", check)
    monkeypatch.setattr(demo.time, "sleep", lambda _: None)
    printed = io.StringIO()
    with (
        fake.served(fake.FakeService()) as service,
        Client(lambda: Endpoint(service.url, fake.TOKEN)) as client,
    ):
        demo._stay(Flow(OwnService(tmp_path, temporary=False), client), Console(file=printed))
        assert f"{service.url}/login?code=c" in printed.getvalue()
    assert "stays up until Ctrl-C" in printed.getvalue()
    assert next(looks, None) is None
