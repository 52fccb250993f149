"""What a living process does: its state, its threads, and the Python stacks that it writes itself.

Owns the dump that a trainer makes on SIGUSR1 (`faulthandler`, into its own output) and how it is
read back. A process that is stopped or stuck in the kernel writes none; its state tells of that.
Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

DUMP_SIGNAL = signal.SIGUSR1
WRITE_SECONDS = 2.0  # for a dump to be there and to be whole
POLL_SECONDS = 0.05
QUIET_POLLS = 3
MOST_BYTES = 64 << 10
MOST_THREADS = 64
STOPPED = "T"
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting in the kernel, for a disk or a device",
    "T": "stopped (SIGSTOP)",
    "t": "stopped by a debugger",
}
FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')


@dataclass(frozen=True)
class Stacks:
    """`state` in words; `text` is one line for each thread as the kernel sees it, then the dump."""

    state: str
    text: str
    stopped: bool = False

    @property
    def place(self) -> str | None:
        """Where the thread that wrote the dump stands, innermost first; None without a dump."""
        frames = FRAME.findall(self.text.partition("Current thread")[2].partition("\n\n")[0])
        if not frames:
            return None
        return ", called by ".join(
            f"{name} ({Path(file).name}:{line})" for file, line, name in frames[:3]
        )


def dump_on_signal() -> None:
    """Has this process write the stacks of all its threads to stderr on `DUMP_SIGNAL`."""
    faulthandler.register(DUMP_SIGNAL, file=sys.stderr, all_threads=True, chain=False)


async def take(pid: int, output: Path) -> Stacks:
    """The stacks of a living process whose stderr goes to `output`; never raises."""
    letter = _state(Path(f"/proc/{pid}"))
    threads = _threads(pid)
    dump = ""
    if letter not in (STOPPED, None) and _catches(pid, DUMP_SIGNAL):
        before = _size(output)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, DUMP_SIGNAL)
            dump = await _written(output, before)
    state = STATES.get(letter or "", "gone" if letter is None else f"in state {letter}")
    return Stacks(state, f"{threads}\n{dump}".strip()[:MOST_BYTES], letter == STOPPED)


async def _written(output: Path, before: int) -> str:
    """What was added since `before`, once nothing more comes."""
    deadline = asyncio.get_running_loop().time() + WRITE_SECONDS
    size, quiet = before, 0
    while quiet < QUIET_POLLS and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        now = _size(output)
        quiet = quiet + 1 if now == size > before else 0
        size = now
    with contextlib.suppress(OSError), output.open("rb") as file:
        file.seek(before)
        return file.read(MOST_BYTES).decode(errors="replace")
    return ""


def _threads(pid: int) -> str:
    lines: list[str] = []
    with contextlib.suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
            letter = _state(task)
            words = STATES.get(letter or "", letter or "gone")
            where = _text(task / "wchan").strip("0\n")
            name = _text(task / "comm").strip()
            lines.append(f"thread {task.name} {name}: {words}{f' in {where}' if where else ''}")
    if len(lines) > MOST_THREADS:
        lines[MOST_THREADS:] = [f"and {len(lines) - MOST_THREADS} more threads"]
    return "\n".join(lines)


def _state(of: Path) -> str | None:
    """The kernel's letter for a process or thread; None when it is gone."""
    fields = _text(of / "stat").rpartition(")")[2].split()
    return fields[0] if fields and fields[0] not in "ZX" else None


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process handles the signal: it would die of one that it does not."""
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
