"""A service of the demo's own: started on a free port, and taken away without a trace.

Owns the processes that the demo starts. Whatever happens, nothing that works in its data folder
outlives it: what a graceful stop leaves is found through /proc and killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from orchestrator.cli import text
from orchestrator.cli.options import CommandFailed

NEEDED_BYTES = 500_000_000
READY_SECONDS = 60.0
STOP_SECONDS = 10.0
SWEEP_SECONDS = 10.0
LOOK_SECONDS = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OWN_MODULES = ("orchestrator.cli.main", "worker.agent", "worker.trainer")


class Interrupted(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Interrupts:
    """The first signal interrupts what runs; one that comes while `closing` only hurries it."""

    closing: bool = False
    hurried: bool = False

    def handle(self, number: int, _: FrameType | None) -> None:
        if self.closing:
            self.hurried = True
            return
        self.closing = True
        raise Interrupted(number)


@contextlib.contextmanager
def interruptible() -> Generator[Interrupts]:
    """Signals are handled by the `Interrupts` handed out, and as before afterwards."""
    interrupts = Interrupts()
    before = {number: signal.signal(number, interrupts.handle) for number in SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class OwnService:
    """`longhaul up` on `folder`; `temporary` folders are removed with it."""

    folder: Path
    temporary: bool
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "service.log"

    def start(self) -> None:
        """Starts it and waits until it is ready; raises `CommandFailed` with its own words."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LONGHAUL_")}
        command = [sys.executable, "-m", "orchestrator.cli.main", "up"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data", str(self.folder), "--host", "127.0.0.1", "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # A Ctrl-C at the terminal is the demo's to handle, in its own order.
                start_new_session=True,
            )
        if not _wait(self._is_ready, READY_SECONDS):
            self.fail(f"The service was not ready after {READY_SECONDS:.0f} seconds.")

    def _is_ready(self) -> bool:
        self.check()
        import httpx

        with contextlib.suppress(OSError, ValueError, KeyError, httpx.HTTPError):
            written = json.loads((self.folder / "service.json").read_text())
            # An older service of a kept folder may have left its address behind.
            if self.process is not None and written["pid"] == self.process.pid:
                url = f"{written['url'].rstrip('/')}/readyz"
                return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
        return False

    def check(self) -> None:
        """Raises `CommandFailed` where the service has ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            self.fail(f"The service ended by itself ({_ended(self.process.returncode)}).")

    def fail(self, what: str) -> None:
        """Raises `CommandFailed` with the service's last words."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[-12:]
            what += "".join(f"\n  {text.clean(line)}" for line in lines)
        raise CommandFailed(what, "Its last words are above; see also: longhaul doctor")

    def stop(self, is_hurried: Callable[[], bool]) -> bool:
        """Ends every process of the folder and removes it if it is temporary.

        True when nothing is left. `is_hurried` cuts the graceful part short.
        """
        if self.process is not None:
            # Agents leave by themselves once their run is over: they are given a moment.
            _wait(lambda: is_hurried() or not self._workers(), STOP_SECONDS / 2)
            self.process.terminate()
            _wait(lambda: is_hurried() or self._has_ended(), STOP_SECONDS)
            if not self._has_ended():
                self.process.kill()
        left = sweep(self.folder, everything=self.temporary)
        if self.process is not None:
            self.process.wait()
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
        return not left

    def _has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _workers(self) -> list[int]:
        own = self.process.pid if self.process is not None else None
        return [pid for pid in processes_of(self.folder) if pid != own]


def make_folder(data: Path | None) -> OwnService:
    """The demo's data folder, with enough room in it; raises `CommandFailed` otherwise."""
    try:
        if data is not None:
            data.mkdir(parents=True, exist_ok=True)
        folder = data or Path(tempfile.gettempdir())
        free = shutil.disk_usage(folder).free
        if free < NEEDED_BYTES:
            raise CommandFailed(
                f"The disk is full: {folder} has {text.size(free)} free,"
                f" and the demo needs {text.size(NEEDED_BYTES)}.",
                "Free some space, or name a folder on another disk: longhaul demo --data DIR",
            )
        if data is not None:
            return OwnService(data.resolve(), temporary=False)
        return OwnService(Path(tempfile.mkdtemp(prefix="longhaul-demo-")).resolve(), temporary=True)
    except OSError as error:
        where = data or error.filename or "the folder for temporary files"
        raise CommandFailed(
            f"The demo cannot write to {where}: {error.strerror}.",
            "Name another folder: longhaul demo --data DIR",
        ) from error


def sweep(folder: Path, *, everything: bool = False) -> list[int]:
    """Kills what works in `folder` until nothing does; answers the pids that would not go."""

    def kill_all() -> bool:
        found = processes_of(folder, everything=everything)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return not found

    _wait(kill_all, SWEEP_SECONDS)
    return processes_of(folder, everything=everything)


def processes_of(folder: Path, *, everything: bool = False) -> list[int]:
    """Pids of Longhaul's live processes that work in `folder` or were told of it.

    With `everything`, whatever works in it: right for a folder that nobody else can know.
    """
    own = os.getpid()
    return sorted(
        pid
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        if pid != own and _belongs(pid, folder, everything)
    )


def _belongs(pid: int, folder: Path, everything: bool) -> bool:
    process = Path("/proc") / str(pid)
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if not any(words):  # a zombie: it runs no more
            return False
        inside = (process / "cwd").readlink().is_relative_to(folder)
    except OSError:
        return False
    told = any(word == str(folder) or f"{folder}/" in word for word in words)
    return (inside or told) and (everything or any(word in OWN_MODULES for word in words))


def kill_trainer(pid: int, folder: Path) -> bool:
    """SIGKILL for `pid` if it is a trainer of `folder`; False where it is not, or is gone."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Looked at after the handle was taken, so that a reused pid cannot be hit.
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
        if b"worker.trainer" not in words or not _belongs(pid, folder, everything=False):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _wait(is_done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True
