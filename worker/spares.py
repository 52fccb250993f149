"""When a host keeps a spare trainer beside the one that trains, and who gets it.

Owns the one spare of a host. The spares of a gang stand by together: that of host 0 says where it
is to be met, the control plane passes that on, and an attempt is made to begin there only while all
of them say that they stand ready. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from worker.host import HostFolder
from worker.memory import available_bytes
from worker.protocol import ResumePoint, StandBy, StartTrainer
from worker.spare import Level, Spare, level_for
from worker.supervise import Trainer

AGAIN_SECONDS = 60.0  # after one that died by itself
LOOK_SECONDS = 1.0
MEET_SECONDS = 60.0  # so long another host waits to be told where the spares meet
GANG_TRIES = 2  # of one attempt; then each spare does what it can alone
log = logging.getLogger("longhaul.agent")


class GangGone(Exception):
    """An attempt was to begin with spares that stood ready, and this host's is no more."""


class Spares:
    """Keeps one spare beside a trainer that does well. `port` gives one that is free."""

    def __init__(
        self,
        folder: HostFolder,
        argv: Sequence[str],
        running: Callable[[], Trainer | None],
        port: Callable[[], int],
    ) -> None:
        self._folder = folder
        self._argv = argv
        self._running = running
        self._port = port
        self._spare: Spare | None = None
        self._newest: tuple[int, ResumePoint] | None = None
        self._not_before = 0.0
        self._asked: StandBy | None = None
        self._gangs_lost = (0, 0)  # attempt, how many
        self._stood_at: str | None = None

    # ---- what the control plane is told, and tells -----------------------------------------------

    @property
    def standby(self) -> tuple[str | None, bool]:
        """Where this host's spare meets the others, and whether it could be given an order now."""
        spare = self._spare
        if spare is None or spare.coordinator is None or not spare.alive:
            return None, False
        if spare.stands:
            self._stood_at = spare.coordinator
        return spare.coordinator, spare.stands

    def stand_by(self, asked: StandBy | None) -> None:
        """What this host is asked to meet, as of the newest answer; None: nothing."""
        self._asked = asked
        if asked is not None and asked.point is not None:
            self._is_newest(asked.attempt, asked.point)

    def accepted(self, attempt: int, point: ResumePoint) -> None:
        """A checkpoint of `attempt` counts from now on."""
        self._is_newest(attempt, point)

    def _is_newest(self, attempt: int, point: ResumePoint) -> None:
        self._newest = attempt, point
        if self._spare is not None:
            self._spare.preload(point)

    # ---- keeping one -----------------------------------------------------------------------------

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except (
                Exception
            ):  # a spare is a comfort: the trainer must not suffer for the want of it
                log.exception("could not keep a spare trainer")
                self._not_before = time.monotonic() + AGAIN_SECONDS

    async def _look(self) -> None:
        running, now = self._running(), time.monotonic()
        if self._spare is not None and not self._spare.alive:
            log.warning("the spare trainer ended by itself; see logs/spare.log")
            self._count_loss(self._spare, running)
            await self._drop()
            self._not_before = now + AGAIN_SECONDS
        if running is None or running.first_step_at is None:
            return
        if self._spare is not None and not self._fits(self._spare, running):
            await self._drop()
        after = running.start.spec.job.policy.spare_seconds
        if after is None or now < max(running.first_step_at + after, self._not_before):
            return
        if self._spare is None:
            await self._begin(running, now - running.first_step_at - after)

    def _fits(self, spare: Spare, running: Trainer) -> bool:
        """Whether it would still be of use, and meets whom it should."""
        if not spare.follows(running.start):
            return False
        if running.start.spec.process_count == 1 or running.start.rank == 0:
            return True
        asked = self._place_asked(running)
        if spare.coordinator is None:  # it waits alone
            return asked is None or self._gives_up_gangs(running)
        return spare.coordinator == asked

    def _count_loss(self, spare: Spare, running: Trainer | None) -> None:
        if running is not None and spare.coordinator is not None:
            attempt, lost = self._gangs_lost
            same = attempt == running.attempt
            self._gangs_lost = running.attempt, lost + 1 if same else 1

    def _gives_up_gangs(self, running: Trainer) -> bool:
        attempt, lost = self._gangs_lost
        return attempt == running.attempt and lost >= GANG_TRIES

    def _place_asked(self, running: Trainer) -> str | None:
        asked = self._asked
        return asked.coordinator if asked and asked.attempt == running.attempt else None

    async def _begin(self, running: Trainer, due_for: float) -> None:
        level, place = level_for(running, available_bytes()), None
        if level is None:
            return
        if running.start.spec.process_count > 1 and level is not Level.IMPORTS:
            place = None if self._gives_up_gangs(running) else self._meeting_place(running)
            if place is None and due_for < MEET_SECONDS and not self._gives_up_gangs(running):
                return
            level = Level.IMPORTS if place is None else level
        try:
            self._spare = await Spare.begin(self._folder, self._argv, running.start, level, place)
        except OSError as error:
            log.warning("no spare trainer could be started: %s", error)
            self._not_before = time.monotonic() + AGAIN_SECONDS
            return
        point = running.start.spec.resume
        if self._newest is not None and self._newest[0] == running.attempt:
            point = self._newest[1]
        if point is not None:
            self._spare.preload(point)

    def _meeting_place(self, running: Trainer) -> str | None:
        """Host 0 chooses, at the address where it coordinates the gang that trains."""
        if running.start.rank > 0:
            return self._place_asked(running)
        address, _, _ = (running.start.spec.coordinator or "").rpartition(":")
        return f"{address}:{self._port()}" if address else None

    # ---- giving it away --------------------------------------------------------------------------

    async def take(self, start: StartTrainer) -> Spare | None:
        """The spare, where it may carry out `start`; else None, and none is left.

        Raises `GangGone` where the others' spares are to begin where this host's no longer stands:
        nobody can join them, and to wait for that would only take longer.
        """
        spare, self._spare = self._spare, None
        stood_at, self._stood_at = self._stood_at, None
        serves = spare is not None and spare.serves(start)
        if spare is not None and serves:
            await spare.release()
        elif spare is not None:
            await spare.end()
        place = start.spec.coordinator
        if place is not None and place == stood_at and not (serves and spare and spare.coordinator):
            raise GangGone("the spare that was to begin it here is gone")
        return spare if serves else None

    async def close(self) -> None:
        await self._drop()

    async def _drop(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.end()
