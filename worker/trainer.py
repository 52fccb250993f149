"""One training process, started by the agent of its host: `python -m worker.trainer --socket PATH`.

Owns the start and the end of the process: it dies with its agent, holds its host's lock for as
long as it lives, greets the agent before the slow imports, and says why it leaves. Must not import
JAX at the top.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from worker import environment
from worker.ends import TrainerEnd
from worker.protocol import ExitCode, Phase, StartTrainer, TrainerFailed
from worker.report import AgentLink, PhaseClock
from worker.stacks import dump_on_signal
from worker.waiting import until_ordered

if TYPE_CHECKING:
    from worker.ready import Ready

LOCK = "trainer.lock"
LOCK_SECONDS = 10.0
FLUSH_SECONDS = 5.0
FAILED = 1  # an ordinary bug
PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="worker.trainer", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where the agent listens")
    parser.add_argument("--spare", action="store_true", help="get ready, and wait for an order")
    given = parser.parse_args()
    socket: Path = given.socket
    die_with_parent()
    dump_on_signal()
    home = Path.cwd()
    if given.spare:
        link = AgentLink.connect(socket)
        order, ready = until_ordered(link)
        lock = hold_lock(home / LOCK)
    else:
        lock = hold_lock(home / LOCK)
        link = AgentLink.connect(socket)
        order, ready = link.start(), None
    clock = PhaseClock(link)
    clock.enter(Phase.IMPORT)
    signal.signal(signal.SIGTERM, lambda *_: link.drain.set())
    code = train_or_say_why(order, link, clock, ready)
    link.flush(FLUSH_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    # Held until here; and out without the teardown of JAX, which may wait for peers that are gone.
    lock.fileno()
    os._exit(code)


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


def train_or_say_why(
    order: StartTrainer, link: AgentLink, clock: PhaseClock, ready: Ready | None
) -> int:
    """Returns the exit code, after a TrainerFailed event if the end is not a good one."""
    try:
        environment.prepare(order.spec.job)
        from worker.training import run

        return run(order, link, clock, ready)
    except TrainerEnd as end:
        print(f"{type(end).__name__}: {end}", file=sys.stderr)
        report_end(link, end.exit_code, str(end), end.hint, end.field)
        return end.exit_code
    except BaseException as error:  # noqa: BLE001 - whatever it is, the agent must hear of it
        traceback.print_exc()
        last = traceback.format_exception_only(error)[-1].strip()
        report_end(link, FAILED, last, None, None)
        return FAILED


def report_end(
    link: AgentLink, code: ExitCode | int, error: str, hint: str | None, field: str | None
) -> None:
    link.send(TrainerFailed(exit_code=int(code), error=error, hint=hint, field=field))


if __name__ == "__main__":
    main()
