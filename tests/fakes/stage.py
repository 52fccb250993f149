"""One local host with a real agent, a fake control plane and a fake trainer, for fault tests."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orchestrator.providers.base import Provider
from orchestrator.providers.local import LocalProvider
from orchestrator.providers.processes import RecordedProcess, is_locked
from orchestrator.records import HostRequest
from tests.fakes.control_plane import Book, ControlPlane
from worker.protocol import AttemptSpec, Command, DataPlan, JobSpec, StartTrainer
from worker.spool import SpooledEvent

GROUP = "lh-test-1"
FAKE_AGENT = (sys.executable, "-m", "tests.fakes.agent")
T = TypeVar("T")


def start_trainer(attempt: int = 1, rank: int = 0) -> StartTrainer:
    job = JobSpec.model_validate(
        {"name": "t", "model": "demo-1m", "steps": 10, "batch": {"sequences": 1}}
    )
    spec = AttemptSpec(
        run_id="r1",
        attempt=attempt,
        branch=1,
        revision=1,
        job=job,
        data_plan=DataPlan(seed=0),
        storage="/proc/nowhere",
    )
    return StartTrainer(spec=spec, rank=rank)


def until(what: Callable[[], T], seconds: float = 10.0) -> T:
    """Polls until `what` gives something true, which is returned."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not seen within {seconds} s"
        time.sleep(0.005)
    return found


class Stage:
    """`launch` starts an agent on host 0; everything ends with `close`.

    `one` and `several` hosts can be asked for.
    """

    one = HostRequest(1, 1)
    several = HostRequest(3, 2)

    def __init__(self, root: Path) -> None:
        self.root = root
        self.book = Book()
        self.plane = ControlPlane(self.book)
        self.provider = self.made_provider()
        self.provider.acquire(GROUP, self.one)
        self.folder = self.groups / GROUP / "0"

    @property
    def groups(self) -> Path:
        """Where the folders of the host groups lie."""
        return self.root

    def made_provider(self) -> Provider:
        """One that knows of no other."""
        return LocalProvider(self.root, self.plane.url, FAKE_AGENT)

    def launch(self, *behaviour: str) -> None:
        (self.folder / "trainer.args").write_text("\n".join(behaviour))
        self.provider.launch(GROUP, 0, self.book.secret)

    def run(self, *behaviour: str, attempt: int = 1) -> None:
        """An agent whose trainer has reported its start."""
        self.book.command(start_trainer(attempt))
        self.launch(*behaviour)
        self.book.wait(lambda book: book.of("trainer_started"))

    def command(self, *commands: Command) -> None:
        """Returns once the agent has these commands."""
        self.book.command(*commands)
        digest = self.book.digest
        self.book.wait(lambda book: book.reports and book.reports[-1].known_commands == digest)

    def process(self, name: str) -> RecordedProcess | None:
        return RecordedProcess.read(self.folder / f"{name}.pid")

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        process = self.process(name)
        assert process is not None
        os.kill(process.pid, number)
        return process.pid

    def alive(self, name: str) -> bool:
        return is_locked(self.folder / f"{name}.lock")

    def move_control_plane(self) -> None:
        """A control plane with the same memory at another port."""
        self.plane = ControlPlane(self.book)
        self.provider.announce(self.plane.url)

    def spooled(self) -> set[int]:
        """The numbers of all whole events that lie in the spool now."""
        lines = [
            line
            for file in (self.folder / "spool").glob("*.events")
            for line in file.read_bytes().splitlines(keepends=True)
        ]
        return {event.seq for line in lines if (event := SpooledEvent.parse(line)) is not None}

    def log(self) -> str:
        file = self.folder / "logs" / "agent.log"
        return file.read_text() if file.exists() else ""

    def close(self) -> None:
        try:
            self.provider.release(GROUP)
        finally:
            self.plane.stop()
