"""Who lives on a local host, read from its folder: recorded processes and held locks.

Owns the provider's view of the files that an agent and a trainer keep (`agent.lock`, `agent.pid`,
`trainer.lock`, `trainer.pid`): a lock is held for a process's life, a pid file holds the pid and
its start time. Imports the standard library alone: hosts elsewhere run this file as it is.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

RECORD_CHARACTERS = 200
KILL_SECONDS = 10.0
LEAVE_SECONDS = 2.0  # an agent's time to deliver its last events before its host is taken away
POLL_SECONDS = 0.005
# The folder may be another user's, who could put a link or a pipe there.
_AS_IT_IS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class RecordedProcess:
    """A process by pid and start time (field 22 of /proc/PID/stat), against reuse of the pid."""

    pid: int
    started: int

    @classmethod
    def running(cls, pid: int) -> RecordedProcess | None:
        """None where it does not run; one that ended and awaits its reaping does not run."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @classmethod
    def read(cls, path: Path) -> RecordedProcess | None:
        try:
            fd = os.open(path, os.O_RDONLY | _AS_IT_IS)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
            words = file.read(RECORD_CHARACTERS).split()
        if len(words) < 2 or not all(word.isdigit() for word in words[:2]):
            return None
        return cls(int(words[0]), int(words[1]))

    @property
    def alive(self) -> bool:
        return RecordedProcess.running(self.pid) == self

    def signal_group(self, number: signal.Signals, uid: int | None = None) -> None:
        """To the group that it leads; nothing if it is gone, or is another user's than `uid`."""
        if self.alive and (uid is None or _uid(self.pid) == uid):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return


def _uid(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:"))


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock; a file that is not there is not locked."""
    try:
        fd = os.open(path, os.O_RDONLY | _AS_IT_IS)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@dataclass(frozen=True)
class LocalHost:
    """One host's folder. `launched` names the agent process from before it holds its lock.

    Where its processes belong to another user, `uid` is that one: the files that name them are that
    user's too, and must not lead a signal to anybody else's process.
    """

    folder: Path
    uid: int | None = None

    @property
    def launched(self) -> Path:
        return self.folder / "launched.pid"

    @property
    def agent_alive(self) -> bool:
        if is_locked(self.folder / "agent.lock"):
            return True
        process = RecordedProcess.read(self.launched)
        return process is not None and process.alive

    @property
    def trainer_alive(self) -> bool:
        return is_locked(self.folder / "trainer.lock")

    @property
    def busy(self) -> bool:
        return self.agent_alive or self.trainer_alive

    def signal_agent(self, number: signal.Signals) -> None:
        for name in ("launched.pid", "agent.pid"):
            process = RecordedProcess.read(self.folder / name)
            if process is not None:
                process.signal_group(number, self.uid)

    def kill(self) -> None:
        """SIGKILL to the agent first, so that it starts no other trainer, then to the trainer."""
        self.signal_agent(signal.SIGKILL)
        trainer = RecordedProcess.read(self.folder / "trainer.pid")
        if trainer is not None:
            trainer.signal_group(signal.SIGKILL, self.uid)


class StillBusy(Exception):
    """Processes of a host do not end."""


def _nobody() -> None:
    """Who reaps the processes of another host: not this one."""


def let_leave(places: Sequence[LocalHost], reap: Callable[[], None] = _nobody) -> None:
    """Asks the agents to go, and gives them a moment for it."""
    for place in places:
        place.signal_agent(signal.SIGINT)
    until_idle(places, LEAVE_SECONDS, reap)


def end(places: Sequence[LocalHost], reap: Callable[[], None] = _nobody) -> None:
    """Kills what lives there; raises `StillBusy` if something still does after a while."""
    deadline = time.monotonic() + KILL_SECONDS
    while any(place.busy for place in places):
        # Again and again: an agent that was just starting may have started a trainer.
        for place in places:
            place.kill()
        if time.monotonic() > deadline:
            names = ", ".join(str(place.folder) for place in places if place.busy)
            raise StillBusy(f"processes in {names} did not end within {KILL_SECONDS:.0f} s")
        until_idle(places, 0.05, reap)


def until_idle(places: Sequence[LocalHost], seconds: float, reap: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while any(place.busy for place in places) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    reap()
