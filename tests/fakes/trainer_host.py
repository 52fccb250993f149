"""The agent's side of a real trainer process: starts it, answers it, kills it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.fakes.tiny import Recorder
from worker.protocol import (
    EVENT,
    AttemptSpec,
    CheckpointAccepted,
    CheckpointWritten,
    Report,
    StartTrainer,
    ToTrainer,
    ToTrainerAccepted,
    ToTrainerDrain,
    ToTrainerSave,
)

DEADLINE_SECONDS = 200.0


class TrainerHost:
    """One host folder with at most one trainer at a time. Use as a context manager."""

    def __init__(self, home: Path, compile_cache: Path | None = None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self._environment = {"PYTHONPATH": str(Path.cwd()), "JAX_PLATFORMS": "cpu"}
        if compile_cache is not None:
            self._environment["JAX_COMPILATION_CACHE_DIR"] = str(compile_cache)
        self.program: tuple[str, ...] = ("worker.trainer",)
        self.seen = Recorder()
        self.accepting = True
        self._held: list[CheckpointWritten] = []
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> TrainerHost:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._end_conversation()

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def start(self, spec: AttemptSpec, rank: int = 0) -> None:
        """Starts a trainer for this attempt, with a clean record of what it says."""
        self.seen = Recorder()
        self._spec = spec
        self._end_conversation()
        path = self.home / "s"
        path.unlink(missing_ok=True)
        environment = os.environ | self._environment
        with socket.socket(socket.AF_UNIX) as server, (self.home / "log").open("wb") as log:
            server.bind(str(path))
            server.listen()
            server.settimeout(DEADLINE_SECONDS)
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.program, "--socket", str(path)],
                cwd=self.home,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            self._connection, _ = server.accept()
        self._write(StartTrainer(spec=spec, rank=rank))
        said = (self._connection, self.seen)
        self._reader = threading.Thread(target=self._read, args=said, daemon=True)
        self._reader.start()

    def until(self, what: Callable[[Recorder], bool]) -> None:
        """Waits until the record says so."""
        with self._changed:
            happened = self._changed.wait_for(lambda: what(self.seen), DEADLINE_SECONDS)
        assert happened, f"not seen in time; the trainer's log:\n{self.log}"

    def until_step(self, step: int) -> None:
        self.until(lambda seen: any(e.step >= step for e in seen.of("step") + seen.of("beat")))

    def wait(self) -> int:
        """The exit code, negative for a signal, once all that the trainer said is noted."""
        assert self._process is not None
        code = self._process.wait(DEADLINE_SECONDS)
        self._end_conversation()
        return code

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def drain(self) -> None:
        self._write(ToTrainerDrain())

    def ask_to_save(self, request: int) -> None:
        self._write(ToTrainerSave(request=request))

    def hang_up(self) -> None:
        """What the trainer sees when its agent dies."""
        assert self._connection is not None
        self._connection.shutdown(socket.SHUT_RDWR)

    def accept_now(self) -> None:
        """Accepts what is held back, and all that follows."""
        self.accepting = True
        for written in self._held:
            self._accept(written)

    def _end_conversation(self) -> None:
        """Reads to the end of what an ended trainer sent."""
        if self._reader is not None:
            self._reader.join(DEADLINE_SECONDS)
            self._reader = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _accept(self, written: CheckpointWritten) -> None:
        acceptance = CheckpointAccepted(
            run_id=self._spec.run_id,
            checkpoint_id=written.checkpoint_id,
            step=written.step,
            accepted_at=datetime.now(UTC),
            manifest_sha256=written.manifest_sha256,
        )
        self._write(ToTrainerAccepted(acceptance=acceptance))

    def _write(self, message: StartTrainer | ToTrainer) -> None:
        assert self._connection is not None
        self._connection.sendall(message.model_dump_json().encode() + b"\n")

    def _read(self, connection: socket.socket, seen: Recorder) -> None:
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    self._note(seen, EVENT.validate_json(line))
        except OSError:
            pass

    def _note(self, seen: Recorder, event: Report) -> None:
        if isinstance(event, CheckpointWritten):
            if self.accepting:
                self._accept(event)
            else:
                self._held.append(event)
        with self._changed:
            seen.send(event)
            self._changed.notify_all()
