"""An agent that follows another on its host: no trainer of that one may live on, or start again.

Must not import JAX.
"""

from __future__ import annotations

import logging

from worker.host import HostFolder, until_unlocked
from worker.protocol import TrainerExited
from worker.spool import Spool
from worker.tail import last_lines

LOCK_SECONDS = 5.0
ORPHANED = "its agent ended without seeing its exit, and a trainer dies with its agent"
log = logging.getLogger("longhaul.agent")


async def bury(folder: HostFolder, spool: Spool) -> None:
    """Sees to it that the last agent's trainer is dead before this one is known to anybody."""
    record = folder.recorded_trainer()
    if record is not None:
        record.process.kill_group()
    while not await until_unlocked(folder.trainer_lock, LOCK_SECONDS):
        log.error("a trainer of an earlier agent still lives here; waiting for its end")
        if record is not None:
            record.process.kill_group()
    if record is None:
        return
    raise_fence(folder, record.attempt)
    lines = last_lines(folder.log_file(record.attempt, record.rank))
    buried = TrainerExited(exit_code=None, last_lines=lines, why_killed=ORPHANED)
    spool.append(buried, record.attempt, record.rank)
    folder.forget_trainer()


def raise_fence(folder: HostFolder, attempt: int) -> None:
    """No attempt up to this one is started on this host any more."""
    try:
        folder.raise_fence(attempt)
    except OSError as error:
        log.error("attempt %d: could not write its fence down: %s", attempt, error)
