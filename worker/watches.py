"""What an agent watches for: silence above it, a trainer that hangs, the end of its host.

Each is endless and sleeps most of the time. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from worker import metadata
from worker.protocol import HostNotice, KilledFor
from worker.supervise import Trainer

WATCH_SECONDS = 1.0
log = logging.getLogger("longhaul.agent")
Running = Callable[[], Trainer | None]


async def for_silence(running: Running, silent_seconds: Callable[[], float]) -> None:
    """Ends a trainer whose spec wants it to stop when nobody has answered for so long."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        trainer, silent = running(), silent_seconds()
        policy = trainer.start.spec.job.policy if trainer else None
        if trainer is None or policy is None or policy.dead_man_seconds is None:
            continue
        if silent > policy.dead_man_seconds:
            trainer.drain(policy.grace_seconds, KilledFor.DEAD_MAN)


async def for_hangs(running: Running) -> None:
    """Ends a trainer that stays in one place for longer than its spec allows."""
    before = time.monotonic()
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        now = time.monotonic()
        late, before = now - before - WATCH_SECONDS, now
        trainer = running()
        if trainer is None:
            continue
        if late > WATCH_SECONDS:
            trainer.slept(late)
        why = trainer.overdue()
        if why is not None:
            log.error("attempt %d hangs: %s", trainer.attempt, why)
            await trainer.end(why, KilledFor.HUNG)


async def for_notices(tell: Callable[[HostNotice], None]) -> None:
    """The cloud's own word that this machine is about to go; it is told once."""
    host = metadata.server()
    if host is not None:
        tell(await metadata.notice(host))
    await asyncio.Event().wait()
