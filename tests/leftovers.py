"""Finds the processes that a test has left behind. Reads /proc; knows nothing of Longhaul."""

from __future__ import annotations

import contextlib
import os
import signal
import time

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
    for other in pids():
        if other == pid:
            continue
        with contextlib.suppress(OSError):
            state, parent = _stat(other)
            if state in "ZX":
                continue
            if parent != pid and mark not in read(other, "environ").split(b"\0"):
                continue
            # Empty for a moment while the process turns into its program.
            command = read(other, "cmdline")
            if not any(helper in command for helper in HELPERS):
                words = command.replace(b"\0", b" ").decode(errors="replace").strip()
                found[other] = words[:200]
    return found


def pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _stat(pid: int) -> tuple[str, int]:
    """State and parent."""
    after_name = read(pid, "stat").rpartition(b")")[2].split()
    return after_name[0].decode(), int(after_name[1])


def read(pid: int, name: str) -> bytes:
    """As cheap as can be: every test has this done for each process of the machine, twice."""
    file = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(file, 1 << 16), b""))
    finally:
        os.close(file)


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
            _, pid = _stat(pid)
        except OSError:
            return False
    return False


def kill(pids: dict[int, str]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
