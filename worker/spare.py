"""The trainer that waits beside the one that trains, so that the next attempt begins warm.

Owns the one spare of a host: when it is started, how far it gets ready, and the hand-over. A spare
has no attempt and no lock, writes nothing of the run and tells the control plane nothing: it is a
process of the agent until it is handed an order. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from worker.host import HostFolder, kill_group
from worker.protocol import ResumePoint, SpareReady, StartTrainer, ToSparePreload, ToSpareWarm
from worker.supervise import EVENT_LINE_BYTES, Trainer, trainer_environment

AGAIN_SECONDS = 60.0  # after one that died by itself
LOOK_SECONDS = 1.0
IMPORTS_BYTES = 400 << 20
COMPILED_BYTES = 300 << 20  # more than that
RESERVE_BYTES = 1 << 30  # never taken from the machine
OTHER_BYTES = 350 << 20  # of a trainer's memory that is no state: the interpreter and libraries
log = logging.getLogger("longhaul.agent")


class Level(enum.StrEnum):
    """How far a spare gets ready. Only the first leaves the device alone."""

    IMPORTS = "imports"
    COMPILED = "compiled"
    STATE = "state"


def level_for(running: Trainer, available: int | None) -> Level | None:
    """The highest level that the device, the gang and the memory allow; None for no spare.

    A second process on an accelerator would fight the first for its memory. The processes of a
    gang can compile only together, and no gang stands by.
    """
    if available is None or available < RESERVE_BYTES + IMPORTS_BYTES:
        return None
    key = running.numerics_key or ""
    if running.start.spec.process_count > 1 or not key.startswith("cpu "):
        return Level.IMPORTS
    left = available - RESERVE_BYTES - IMPORTS_BYTES - COMPILED_BYTES
    if left < 0:
        return Level.IMPORTS
    state = max(0, resident_bytes(running.pid) - OTHER_BYTES)
    return Level.STATE if left > 2 * state else Level.COMPILED


class Spare:
    """One waiting process. `start` is the order of the trainer that it is to follow."""

    def __init__(self, process: asyncio.subprocess.Process, start: StartTrainer, level: Level):
        self.process = process
        self.level = level
        self.ready = False
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self._start = start
        self._point: ResumePoint | None = None
        self._told: ResumePoint | None = None
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def begin(
        cls, folder: HostFolder, argv: Sequence[str], start: StartTrainer, level: Level
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
        spare = cls(process, start, level)
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
        self._send(ToSpareWarm(start=self._start, level=self.level.value))
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
        warmed = self.ready or self._told is not None  # else it is still at its imports
        return self.follows(start) and warmed and self.alive and self.writer is not None

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


class Spares:
    """Keeps one spare beside a trainer that does well."""

    def __init__(
        self,
        folder: HostFolder,
        argv: Sequence[str],
        running: Callable[[], Trainer | None],
    ) -> None:
        self._folder = folder
        self._argv = argv
        self._running = running
        self._spare: Spare | None = None
        self._newest: tuple[int, ResumePoint] | None = None
        self._not_before = 0.0

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
            await self._drop()
            self._not_before = now + AGAIN_SECONDS
        if running is None or running.first_step_at is None:
            return
        if self._spare is not None and not self._spare.follows(running.start):
            await self._drop()
        after = running.start.spec.job.policy.spare_seconds
        if after is None or now < max(running.first_step_at + after, self._not_before):
            return
        if self._spare is None:
            await self._begin(running)

    async def _begin(self, running: Trainer) -> None:
        level = level_for(running, available_bytes())
        if level is None:
            return
        try:
            self._spare = await Spare.begin(self._folder, self._argv, running.start, level)
        except OSError as error:
            log.warning("no spare trainer could be started: %s", error)
            self._not_before = time.monotonic() + AGAIN_SECONDS
            return
        point = running.start.spec.resume
        if self._newest is not None and self._newest[0] == running.attempt:
            point = self._newest[1]
        if point is not None:
            self._spare.preload(point)

    def accepted(self, attempt: int, point: ResumePoint) -> None:
        """A checkpoint of `attempt` counts from now on."""
        self._newest = attempt, point
        if self._spare is not None:
            self._spare.preload(point)

    async def take(self, start: StartTrainer) -> Spare | None:
        """The spare, where it may carry out `start`; else None, and none is left."""
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        if spare.serves(start):
            await spare.release()
            return spare
        await spare.end()
        return None

    async def close(self) -> None:
        await self._drop()

    async def _drop(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.end()


# ---- memory ------------------------------------------------------------------------------------


def available_bytes() -> int | None:
    """What this machine, or the cgroup that the agent is in, has left; None where unknown."""
    found = [value for value in (_machine_left(), _cgroup_left()) if value is not None]
    return min(found, default=None)


def _machine_left() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _cgroup_left(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Of the unified hierarchy. What is cached could be given back, and does not count as used."""
    with contextlib.suppress(OSError, ValueError):
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((root / "memory.current").read_text())
        words = (root / "memory.stat").read_text().split()
        cached = int(words[words.index("inactive_file") + 1])
        return int(limit) - used + cached
    return None


def resident_bytes(pid: int | None) -> int:
    """Private and shared memory of a process; 0 where it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
