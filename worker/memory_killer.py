"""What the kernel says about a process that it ended for want of memory. Must not import JAX.

Two places tell of it: the kernel's log, which names the process but needs the right to be read, and
the cgroup's count of such kills, which names nobody. Neither ever raises: evidence may be missing.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KERNEL_LOG = Path("/dev/kmsg")
CGROUPS = Path("/sys/fs/cgroup")
RECORD_BYTES = 8192  # the kernel's limit of one record of /dev/kmsg
MAX_RECORDS = 100_000
KILLED = re.compile(r"out of memory: killed process (\d+)\b", re.IGNORECASE)


@dataclass(frozen=True)
class MemoryWatch:
    """Looks from the start of one process; `since` is the system's monotonic clock in seconds."""

    since: float
    kills: int | None
    kernel_log: Path = KERNEL_LOG
    cgroup: Path | None = None

    @classmethod
    def begin(
        cls, since: float, kernel_log: Path = KERNEL_LOG, cgroup: Path | None = None
    ) -> MemoryWatch:
        cgroup = cgroup or own_cgroup()
        return cls(since, _kills(cgroup), kernel_log, cgroup)

    def line(self, pid: int) -> str | None:
        """The kernel's words if it ended `pid` for want of memory; None where nothing says so."""
        for at, message in _records(self.kernel_log):
            found = KILLED.search(message)
            if found and int(found[1]) == pid and at >= self.since:
                return message
        kills = _kills(self.cgroup)
        if kills is not None and self.kills is not None and kills > self.kills:
            return (
                f"memory.events: the host's group of processes had {kills - self.kills} killed"
                " for want of memory since the trainer began"
            )
        return None


def own_cgroup() -> Path | None:
    """The folder of this process's cgroup, of the second version of cgroups alone."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                return CGROUPS / line.removeprefix("0::").strip().lstrip("/")
    return None


def _kills(cgroup: Path | None) -> int | None:
    if cgroup is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        for line in (cgroup / "memory.events").read_text(encoding="utf-8").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def _records(path: Path) -> Iterator[tuple[float, str]]:
    """(seconds since boot, message) of each record that is still in the kernel's log."""
    try:
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for _ in range(MAX_RECORDS):
            try:
                record = os.read(log, RECORD_BYTES)
            except BrokenPipeError:
                continue  # it was overwritten while it was read; the next one is there
            except OSError:
                return
            if not record:
                return
            yield from _parsed(record.decode(errors="replace"))
    finally:
        os.close(log)


def _parsed(record: str) -> Iterator[tuple[float, str]]:
    """`priority,number,microseconds,flags;message`; lines that begin with a blank are details."""
    for line in record.splitlines():
        head, _, message = line.partition(";")
        fields = head.split(",")
        if len(fields) >= 3 and fields[2].isdigit():
            yield int(fields[2]) / 1e6, message
