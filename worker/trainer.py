"""One training process, started by the agent of its host: `python -m worker.trainer --socket PATH`.

Owns the start and the end of the process: it dies with its agent, holds its host's lock for as
long as it lives, greets the agent before the slow imports, and says why it leaves. Must not import
JAX at the top.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from worker import environment
from worker.ends import TrainerEnd
from worker.life import die_with_parent, hold_lock
from worker.protocol import ExitCode, Phase, StartTrainer, TrainerFailed
from worker.report import AgentLink, PhaseClock
from worker.stacks import dump_on_signal
from worker.waiting import until_ordered

if TYPE_CHECKING:
    from worker.ready import Ready

LOCK = "trainer.lock"
FLUSH_SECONDS = 5.0
FAILED = 1  # an ordinary bug


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="worker.trainer", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where the agent listens")
    parser.add_argument("--spare", action="store_true", help="get ready, and wait for an order")
    given = parser.parse_args()
    socket: Path = given.socket
    die_with_parent()
    dump_on_signal()
    home, asked = Path.cwd(), threading.Event()
    if given.spare:
        link = AgentLink.connect(socket)
        order, ready = until_ordered(link)
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        lock = hold_lock(home / LOCK)
    else:
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        lock = hold_lock(home / LOCK)
        link = AgentLink.connect(socket)
        order, ready = link.start(), None
    clock = PhaseClock(link)
    clock.enter(Phase.IMPORT)
    signal.signal(signal.SIGTERM, lambda *_: link.drain.set())
    if asked.is_set():  # there was nobody to tell of it yet
        link.drain.set()
    code = train_or_say_why(order, link, clock, ready)
    link.flush(FLUSH_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    # Held until here; and out without the teardown of JAX, which may wait for peers that are gone.
    lock.fileno()
    os._exit(code)


def train_or_say_why(
    order: StartTrainer, link: AgentLink, clock: PhaseClock, ready: Ready | None
) -> int:
    """Returns the exit code, after a TrainerFailed event if the end is not a good one."""
    try:
        environment.prepare(order.spec.trained)
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
