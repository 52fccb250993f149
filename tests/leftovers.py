"""Finds the processes that a test has left behind. Reads /proc; knows nothing of Longhaul."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "TESTED_BY"
# Python's own helper of multiprocessing, which ends with the process that it serves.
HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


def mark_descendants(pid: int) -> None:
    """Lets every later process of this one, orphans included, carry `pid` in its environment."""
    os.environ[MARK] = str(pid)


def descendants(pid: int) -> dict[int, str]:
    """The live processes that carry `pid`'s mark, and those that it started itself, by command."""
    mark = f"{MARK}={pid}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == pid:
            continue
        with contextlib.suppress(OSError):
            state, parent = _stat(entry)
            # Empty for a moment while the process turns into its program.
            command = (entry / "cmdline").read_bytes()
            if state in "ZX" or any(helper in command for helper in HELPERS):
                continue
            if parent == pid or mark in (entry / "environ").read_bytes().split(b"\0"):
                words = command.replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = words[:200]
    return found


def _stat(entry: Path) -> tuple[str, int]:
    """State and parent."""
    after_name = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return after_name[0], int(after_name[1])


def wait_until_gone(pid: int, known: set[int], seconds: float) -> dict[int, str]:
    """What is left of `pid`'s descendants after `seconds` at most, without `known` and theirs."""
    deadline = time.monotonic() + seconds
    while left := {p: words for p, words in descendants(pid).items() if not _belongs(p, known)}:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.02)
    return {}


def _belongs(pid: int, known: set[int]) -> bool:
    """Whether it is one of `known` or was started below one: a server's worker, a browser's tab."""
    while pid > 1:
        if pid in known:
            return True
        try:
            _, pid = _stat(Path(f"/proc/{pid}"))
        except OSError:
            return False
    return False


def kill(pids: dict[int, str]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
