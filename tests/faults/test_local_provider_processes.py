"""The local provider against processes that are in its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.providers.local import LocalProvider
from orchestrator.providers.processes import LocalHost, RecordedProcess
from orchestrator.records import HostRequest
from tests.fakes.stage import GROUP, Stage, until

HOLD_LOCK = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "hosts")
    yield made
    made.close()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else, leader of its own group."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(
    stage: Stage, stranger: subprocess.Popen[bytes]
):
    now = RecordedProcess.running(stranger.pid)
    assert now is not None
    for name in ("agent.pid", "trainer.pid", "launched.pid"):
        (stage.folder / name).write_text(f"{now.pid} {now.started - 1} 1 0\n")
    stage.launch("--linger")
    stage.book.wait(lambda book: book.registered)
    stage.provider.release(GROUP)
    assert stranger.poll() is None


@pytest.mark.parametrize("text", ["", "12", "x y", "\0"])
def test_a_damaged_pid_file_stops_nothing(stage: Stage, text: str):
    for name in ("agent.pid", "trainer.pid", "launched.pid"):
        (stage.folder / name).write_text(text)
    stage.launch("--linger")
    stage.book.wait(lambda book: book.registered)


def test_an_agent_waits_for_a_trainer_that_nobody_recorded(stage: Stage):
    lock = stage.folder / "trainer.lock"
    argv = [sys.executable, "-S", "-c", HOLD_LOCK, str(lock)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        (stage.folder / "trainer.args").write_text("--linger")
        (stage.folder / "control-url").write_text(stage.plane.url)
        handed = json.dumps({"group": GROUP, "host": 0, "secret": stage.book.secret})
        stage.provider._spawn(LocalHost(stage.folder), handed.encode())
        until(lambda: stage.process("agent"))
        with pytest.raises(AssertionError):
            stage.book.wait(lambda book: book.registered, 1.0)
        holder.kill()
        stage.book.wait(lambda book: book.registered)


def test_agents_outlive_the_control_plane_that_started_them(stage: Stage, tmp_path: Path):
    (stage.folder / "trainer.args").write_text("--linger")
    starter = f"""
import sys
from pathlib import Path
from orchestrator.providers.local import LocalProvider
agent = (sys.executable, "-m", "tests.fakes.agent")
LocalProvider(Path({str(stage.folder.parent.parent)!r}), {stage.plane.url!r}, agent).launch(
    {GROUP!r}, 0, "s3cret")
"""
    subprocess.run([sys.executable, "-c", starter], check=True)
    stage.book.wait(lambda book: book.registered)
    assert stage.alive("agent")


def test_dead_agents_leave_no_zombie(stage: Stage):
    stage.launch("--linger")
    stage.book.wait(lambda book: book.registered)
    pid = stage.kill("agent")
    until(lambda: stage.provider.probe(GROUP).hosts[0].agent_alive is False)
    until(lambda: stage.provider.probe(GROUP) and not Path(f"/proc/{pid}").exists(), 2.0)


def test_agents_get_no_settings_and_no_secrets_of_the_control_plane(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LONGHAUL_DATABASE_URL", "postgresql://u:hidden@db/x")
    monkeypatch.setenv("SOME_TOKEN", "hidden")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    stage.run("--linger")
    for name in ("agent", "trainer"):
        process = stage.process(name)
        assert process is not None
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"hidden" not in environment
        assert b"XLA_FLAGS" in environment


def test_folders_are_their_owners_alone(stage: Stage):
    old = os.umask(0)
    try:
        LocalProvider(stage.folder.parent.parent, stage.plane.url).acquire(
            "lh-open", HostRequest(1, 1)
        )
    finally:
        os.umask(old)
    group = stage.folder.parent.parent / "lh-open"
    for path in (group.parent, group, group / "0"):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_group_half_made_is_there_but_not_ready(stage: Stage):
    half = stage.folder.parent.parent / "lh-half"
    half.mkdir()
    probe = stage.provider.probe("lh-half")
    assert (probe.exists, probe.ready) == (True, False)
    stage.provider.acquire("lh-half", HostRequest(2, 1))
    assert stage.provider.probe("lh-half").ready


def test_a_stopped_agent_is_taken_away_too(stage: Stage):
    stage.run("--linger")
    stage.kill("agent", signal.SIGSTOP)
    stage.provider.release(GROUP)
    assert not stage.provider.probe(GROUP).exists
