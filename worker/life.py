"""The life of a trainer's process: it ends with its agent, and holds its host's lock until then.

Run as a file it does both for a program that knows nothing of it, and then becomes that program:
`python -I life.py LOCK PROGRAM ARGUMENT…`. Imports nothing but the standard library, so that it
starts whatever the program's environment says.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import IO, NoReturn

LOCK_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
CAN_NEVER_WORK = 65  # ExitCode.INVALID


def die_with_parent() -> None:
    """Has the kernel kill this process once the thread that started it ends."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("the agent ended before its trainer began")


def hold_lock(path: Path, seconds: float = LOCK_SECONDS) -> IO[str]:
    """Takes the host's trainer lock; it is free again when this process is gone, however it ends.

    Exits with a message when another trainer still has it after `seconds`.
    """
    file = path.open("a")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                sys.exit(f"another trainer still holds {path} after {seconds:g} s; end it first")
            time.sleep(0.05)
        else:
            return file


def become(lock: Path, command: list[str]) -> NoReturn:
    """Turns this process into `command`, which inherits the lock and dies with the agent too."""
    agent = os.getppid()
    die_with_parent()
    held = hold_lock(lock)
    os.set_inheritable(held.fileno(), True)
    end_together(agent)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them; other programs need not
    try:
        os.execvp(command[0], command)  # noqa: S606 - there is no shell, as it should be
    except OSError as error:
        print(f"longhaul: {command[0]} can not be started: {error.strerror}", file=sys.stderr)
    os._exit(CAN_NEVER_WORK)


def end_together(agent: int) -> None:
    """Has all processes of this group end once this one or the agent does.

    The kernel ends this process with its agent, but not what it will have started.
    """
    leader = os.getpid()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:  # nobody's child, so that the program need not know of it
            _guard(agent, leader)
    finally:
        os._exit(0)


def _guard(agent: int, leader: int) -> None:
    os.chdir("/")
    ends = select.poll()
    watched: list[int] = []
    try:
        for pid in (agent, leader):
            watched.append(os.pidfd_open(pid))
            ends.register(watched[-1], select.POLLIN)
        lowest = min(watched)
        os.closerange(0, lowest)  # its log and its lock are the program's
        os.closerange(max(watched) + 1, 1 << 16)
        ends.poll()
    except ProcessLookupError:
        pass  # one of them has ended already
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    become(Path(sys.argv[1]), sys.argv[2:])
