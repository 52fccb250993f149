"""A trainer that waits beside the one that trains, so that the next attempt begins warm.

Owns the process: how far it gets ready, what it is told, whose order it may take. It has no attempt
and no lock, writes nothing of the run and tells the control plane nothing: it is a process of the
agent until it is handed an order. When there is one is `spares.py`'s. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from worker.host import HostFolder, kill_group
from worker.memory import resident_bytes
from worker.protocol import ResumePoint, SpareReady, StartTrainer, ToSparePreload, ToSpareWarm
from worker.supervise import EVENT_LINE_BYTES, Trainer, trainer_environment

IMPORTS_BYTES = 400 << 20
COMPILED_BYTES = 300 << 20  # more than that
RESERVE_BYTES = 1 << 30  # never taken from the machine
OTHER_BYTES = 350 << 20  # of a trainer's memory that is no state: the interpreter and libraries
LOOPBACK = "127."
log = logging.getLogger("longhaul.agent")


class Level(enum.StrEnum):
    """How far a spare gets ready. Only the first leaves the device alone."""

    IMPORTS = "imports"
    COMPILED = "compiled"
    STATE = "state"


def level_for(running: Trainer, available: int | None) -> Level | None:
    """The highest level that the device, the gang and the memory allow; None for no spare.

    A second process on an accelerator would fight the first for its memory. On one machine the
    spares of a gang share what is left.
    """
    if available is None or available < RESERVE_BYTES + IMPORTS_BYTES:
        return None
    if not (running.numerics_key or "").startswith("cpu "):
        return Level.IMPORTS
    left = (available - RESERVE_BYTES) / _sharing(running) - IMPORTS_BYTES - COMPILED_BYTES
    if left < 0:
        return Level.IMPORTS
    state = max(0, resident_bytes(running.pid) - OTHER_BYTES)
    return Level.STATE if left > 2 * state else Level.COMPILED


def _sharing(running: Trainer) -> int:
    """How many processes of its gang are on this machine, as far as that is known."""
    spec = running.start.spec
    return spec.process_count if (spec.coordinator or "").startswith(LOOPBACK) else 1


class Spare:
    """One waiting process. `start` is the order of the trainer that it is to follow.

    That of a gang which stands by meets the others' at `coordinator`, and can begin only there.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        start: StartTrainer,
        level: Level,
        coordinator: str | None = None,
    ):
        self.process = process
        self.level = level
        self.coordinator = coordinator
        self.ready = False
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self._start = start
        self._point: ResumePoint | None = None
        self._told: ResumePoint | None = None
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def begin(
        cls,
        folder: HostFolder,
        argv: Sequence[str],
        start: StartTrainer,
        level: Level,
        coordinator: str | None = None,
    ) -> Spare:
        """Spawns one. Must run in the main thread, as a trainer's start does. Raises OSError."""
        path = folder.socket_path(0)
        Path(path).unlink(missing_ok=True)
        came: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if came.done():
                writer.close()
            else:
                came.set_result((reader, writer))

        server = await asyncio.start_unix_server(connected, path, limit=EVENT_LINE_BYTES)
        with (folder.logs / "spare.log").open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *argv, "--socket", path, "--spare",
                cwd=folder.root,
                env=trainer_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )  # fmt: skip
        spare = cls(process, start, level, coordinator)
        spare._reading = asyncio.create_task(spare._talk(server, came, path))
        return spare

    async def _talk(
        self,
        server: asyncio.Server,
        came: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
        path: str,
    ) -> None:
        gone = asyncio.create_task(self.process.wait())
        try:
            await asyncio.wait((came, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            server.close()
            Path(path).unlink(missing_ok=True)
        if not came.done():
            return
        self.reader, self.writer = came.result()
        self._send(
            ToSpareWarm(start=self._start, coordinator=self.coordinator, level=self.level.value)
        )
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await self.reader.readline():
                self._hear(line)

    def _hear(self, line: bytes) -> None:
        with contextlib.suppress(ValidationError):
            told = SpareReady.model_validate_json(line)
            held = f" with {told.checkpoint_id}" if told.checkpoint_id else ""
            log.info("spare trainer: %s%s, after %.1f s", told.level, held, told.seconds)
            self.ready = True
            self._preload()

    def preload(self, point: ResumePoint) -> None:
        """The newest checkpoint that counts: what the next attempt will begin with, as a rule."""
        self._point = point
        if self.ready:
            self._preload()

    def _preload(self) -> None:
        if self.level is Level.STATE and self._point not in (None, self._told):
            assert self._point is not None
            self._told, self.ready = self._point, False
            self._send(ToSparePreload(point=self._point))

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def follows(self, start: StartTrainer) -> bool:
        """Whether all that it gets ready is right for `start`."""
        ours, theirs = self._start.spec, start.spec
        return (
            ours.job == theirs.job
            and ours.process_count == theirs.process_count
            and Path(ours.storage).parent == Path(theirs.storage).parent
            and self._start.rank == start.rank
        )

    def serves(self, start: StartTrainer) -> bool:
        """Whether it may carry out `start` now, and would be there sooner than a new process."""
        here = self.coordinator in (None, start.spec.coordinator)
        return here and self.follows(start) and self.stands

    @property
    def stands(self) -> bool:
        """Whether it could be given an order now."""
        warmed = self.ready or self._told is not None  # else it is still at its imports
        return warmed and self.alive and self.writer is not None

    async def release(self) -> None:
        """From here on it is a trainer's process, and another reads what it says."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _send(self, message: BaseModel) -> None:
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(message.model_dump_json().encode() + b"\n")

    async def end(self) -> None:
        """SIGKILL to it and whatever it started; returns once it is reaped."""
        await self.release()
        if self.alive:
            kill_group(self.process.pid)
        await self.process.wait()
        if self.writer is not None:
            self.writer.transport.abort()
