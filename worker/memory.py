"""How much memory is left here, and how much a process has. Must not import JAX."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def available_bytes() -> int | None:
    """What this machine, or the cgroup that the agent is in, has left; None where unknown."""
    found = [value for value in (_machine_left(), _cgroup_left()) if value is not None]
    return min(found, default=None)


def _machine_left() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _cgroup_left(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Of the unified hierarchy. What is cached could be given back, and does not count as used."""
    with contextlib.suppress(OSError, ValueError):
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((root / "memory.current").read_text())
        words = (root / "memory.stat").read_text().split()
        cached = int(words[words.index("inactive_file") + 1])
        return int(limit) - used + cached
    return None


def resident_bytes(pid: int | None) -> int:
    """Private and shared memory of a process; 0 where it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
