"""The folder of one host: its files, its two locks, and who lives in it.

Owns the layout that the agent, the trainer and the provider of hosts share. A lock is an flock
held for a process's life, so that the kernel itself tells who is alive. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.protocol import HostFacts
from worker.protocol.hosts import COORDINATOR_PORTS

SOCKET_PATH_LIMIT = 107  # bytes; the kernel's limit for the name of a Unix socket
LOCK_RETRY_SECONDS = 1.0  # a prober holds a shared lock for microseconds; outlast it
POLL_SECONDS = 0.005
ANY_PORT = range(0)


@dataclass(frozen=True)
class ProcessId:
    """A process that can not be mistaken for a later one with the same pid.

    `started` is its start time in clock ticks since boot (field 22 of /proc/PID/stat).
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """None where no such process runs; one that ended and awaits its reaping does not run."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self

    def kill_group(self) -> None:
        """SIGKILL to the process's group, which it leads; nothing if it is gone."""
        if self.alive:
            kill_group(self.pid)


@dataclass(frozen=True)
class TrainerRecord:
    """The last trainer that was started here and whose exit is not yet in the spool."""

    process: ProcessId
    attempt: int
    rank: int


def kill_group(pid: int) -> None:
    """SIGKILL to the group that `pid` leads; success where it is gone."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock; a file that is not there is not locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


async def until_unlocked(path: Path, seconds: float) -> bool:
    """Waits until nobody holds the lock; False when `seconds` passed first."""
    deadline = time.monotonic() + seconds
    while is_locked(path):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def write_whole(path: Path, text: str) -> None:
    """Replaces the file in one move, readable by its owner alone."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


class HostFolder:
    """One host's folder. `attempt_fence` is the highest attempt that ran or was ended here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secrets = root / "agent.json"
        self.control_url_file = root / "control-url"
        self.agent_lock = root / "agent.lock"
        self.agent_pid = root / "agent.pid"
        self.trainer_lock = root / "trainer.lock"
        self.trainer_pid = root / "trainer.pid"
        self.spool = root / "spool"
        self.logs = root / "logs"
        self._fence_file = root / "highest-attempt"
        self._fence: int | None = None

    def prepare(self) -> None:
        for folder in (self.root, self.spool, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def control_url(self) -> str:
        """Where the control plane answers now, without a slash at the end."""
        return self.control_url_file.read_text(encoding="utf-8").strip().rstrip("/")

    def log_file(self, attempt: int, rank: int) -> Path:
        return self.logs / f"a{attempt}-rank{rank}.log"

    def socket_path(self, attempt: int) -> str:
        """The trainer's socket: absolute, or relative to this folder where that is too long.

        Agent and trainer both run in this folder, so that both names lead to the same socket.
        """
        absolute = str(self.root.absolute() / f"s{attempt}.sock")
        short = len(os.fsencode(absolute)) <= SOCKET_PATH_LIMIT
        return absolute if short else f"s{attempt}.sock"

    @property
    def attempt_fence(self) -> int:
        if self._fence is None:
            try:
                self._fence = int(self._fence_file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                self._fence = 0
        return self._fence

    def raise_fence(self, attempt: int) -> None:
        """No trainer of `attempt` or of an earlier one starts here from now on."""
        if attempt > self.attempt_fence:
            self._fence = attempt  # holds for this process even where the disk is full
            write_whole(self._fence_file, f"{attempt}\n")

    def hold_agent_lock(self) -> int | None:
        """Takes the agent's lock for the life of this process; None if another agent holds it."""
        fd = os.open(self.agent_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_RETRY_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    return None
                time.sleep(POLL_SECONDS)
                continue
            me = ProcessId.of(os.getpid())
            assert me is not None
            write_whole(self.agent_pid, f"{me.pid} {me.started}\n")
            return fd

    def record_trainer(self, record: TrainerRecord) -> None:
        process = record.process
        words = (process.pid, process.started, record.attempt, record.rank)
        write_whole(self.trainer_pid, " ".join(map(str, words)) + "\n")

    def recorded_trainer(self) -> TrainerRecord | None:
        try:
            words = self.trainer_pid.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return None
        if len(words) != 4 or not all(word.isdigit() for word in words):
            return None
        pid, started, attempt, rank = map(int, words)
        return TrainerRecord(ProcessId(pid, started), attempt, rank)

    def forget_trainer(self) -> None:
        self.trainer_pid.unlink(missing_ok=True)

    def facts(self, address: str) -> HostFacts:
        return HostFacts(
            hostname=socket.gethostname(),
            address=address,
            free_port=free_port(address),
            cpus=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            disk_free_bytes=shutil.disk_usage(self.root).free,
            python=sys.version.split()[0],
        )


def allowed_ports(environment: Mapping[str, str]) -> range:
    """Those that trainers may meet at; an empty range where any will do."""
    first, _, last = environment.get(COORDINATOR_PORTS, "").partition("-")
    return range(int(first), int(last) + 1) if first.isdigit() and last.isdigit() else ANY_PORT


def free_port(address: str, within: range = ANY_PORT) -> int:
    """A TCP port that nobody listened on a moment ago: one `within`, as long as there is one."""
    begin = random.randrange(len(within)) if within else 0  # noqa: S311 - two gangs, two ports
    for turn in range(len(within)):
        port = within[(begin + turn) % len(within)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
