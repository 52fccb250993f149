"""A program of the submitter's own under its agent's watch.

Owns what such a program needs before it starts (its bundle, its secrets, a checkpoint that is
proven), what it is told, what of it becomes an event, and what its exit code means. Decides nothing
about the run. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from worker import folders, life, surroundings
from worker.bundle import BadBundle
from worker.calling import UplinkError
from worker.ends import CheckpointUnusable
from worker.hiding import hide, parts_of
from worker.host import HostFolder
from worker.launching import Launch, NotLaunched
from worker.manifest import Manifest, write_acceptance
from worker.meaning import known_as, meaning_of
from worker.pace import PaceWindow
from worker.protocol import (
    ARGUMENT_PLACE,
    CheckpointRejected,
    CheckpointWritten,
    CommandSpec,
    ExitCode,
    FolderRefused,
    FolderSaved,
    KilledFor,
    KnownEvent,
    Meaning,
    Phase,
    PhaseEntered,
    ProgramLeaves,
    Resumed,
    SaveFailed,
    Saving,
    StacksTaken,
    StartTrainer,
    StepBeat,
    StepCompleted,
    ToTrainerAccepted,
    TrainerExited,
    TrainerFailed,
    TrainerStarted,
    Unknown,
)
from worker.reading import FolderReader, StepReader
from worker.supervise import OnEvent, Trainer

FILES = "files"  # a program's own folder, in its attempt's
LOOK_SECONDS = 0.5
log = logging.getLogger("longhaul.agent")


class Supplies(Protocol):
    """What the control plane hands out for a program."""

    async def bundle(self, bundle: str) -> Path:
        """The folder that it is unpacked in; raises BadBundle, UplinkError and OSError."""
        ...

    async def secrets(self, attempt: int) -> Mapping[str, str]:
        """The values of the spec's secrets; raises UplinkError."""
        ...


class Program(Trainer):
    """A trainer that is not ours. Its `spec.job` is a CommandSpec.

    It may speak through `worker.client`; where it does not, its lines and folders are read.
    """

    def __init__(
        self,
        folder: HostFolder,
        start: StartTrainer,
        job: CommandSpec,
        supplies: Supplies,
        on_event: OnEvent,
    ) -> None:
        super().__init__(folder, start, (), on_event)
        self._job = job
        self._supplies = supplies
        self._storage = Path(start.spec.storage) / FILES
        known = () if start.spec.resume is None else (start.spec.resume.step,)
        self._steps = StepReader(job.reads.step)
        self._folders = FolderReader(job.reads, self._storage, known)
        self._pace = PaceWindow()
        self._hidden: tuple[str, ...] = ()
        self._told_at = time.monotonic()
        self._last_told = start.spec.resume_step
        self._finishing = False
        self._given_up = asyncio.Event()
        self._offered: dict[int, asyncio.Event] = {}
        self._taking, self._looking = asyncio.Lock(), asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked_at = 0.0
        self._leaves: ProgramLeaves | None = None

    # ---- before it starts ------------------------------------------------------------------------

    async def _launch(self) -> Launch:
        """Raises NotLaunched; a program that nobody wants any more is not waited for."""
        preparing = asyncio.ensure_future(self._prepare())
        giving_up = asyncio.ensure_future(self._given_up.wait())
        try:
            await asyncio.wait((preparing, giving_up), return_when=asyncio.FIRST_COMPLETED)
            if not preparing.done():
                raise NotLaunched(self._why_killed or "it was asked to leave before it could start")
            return preparing.result()
        finally:
            for task in (preparing, giving_up):
                task.cancel()

    async def _prepare(self) -> Launch:
        spec = self.start.spec
        try:
            cwd = self._storage
            if self._job.bundle is not None:
                cwd = await self._supplies.bundle(self._job.bundle)
            secrets = await self._supplies.secrets(self.attempt) if self._job.secrets else {}
            self._hidden = parts_of(secrets)
            resume = await self._restored()
            await asyncio.to_thread(self._storage.mkdir, parents=True, exist_ok=True)
            if resume is not None and (place := self._folders.place(spec.resume_step)) is not None:
                await asyncio.to_thread(folders.put_back, resume, self._storage, place)
            library = surroundings.library(self._folder.root)
        except (UplinkError, BadBundle, OSError) as error:
            raise NotLaunched(f"it could not be started: {error}") from error
        told = surroundings.told(self._folder, self.start, self._storage, resume)
        environment = surroundings.environment(library) | dict(self._job.env) | dict(secrets) | told
        if python_path := self._job.env.get("PYTHONPATH"):
            environment["PYTHONPATH"] = os.pathsep.join((python_path, str(library)))
        command = (
            ARGUMENT_PLACE.sub(lambda found: told[found[1]], one) for one in self._job.command
        )
        begin = (sys.executable, "-I", life.__file__, str(self._folder.trainer_lock))
        self._tell(PhaseEntered(phase=Phase.TRAIN, previous=Phase.INIT))
        return Launch((*begin, *command), cwd, environment)

    async def _restored(self) -> Path | None:
        """What to begin with, proven; raises NotLaunched for a checkpoint that is not."""
        point = self.start.spec.resume
        if point is None:
            return None
        self._tell(PhaseEntered(phase=Phase.RESTORE, previous=Phase.SPAWN))
        began = time.monotonic()
        try:
            state = await asyncio.to_thread(folders.proven, point)
        except CheckpointUnusable as error:
            why = str(error)
            self._tell(CheckpointRejected(checkpoint_id=point.checkpoint_id, reason=why))
            code = ExitCode.CHECKPOINT_REJECTED
            self._tell(TrainerFailed(exit_code=code, error=why, hint=error.hint))
            raise NotLaunched(why, code) from error
        seconds = time.monotonic() - began
        self._tell(PhaseEntered(phase=Phase.INIT, previous=Phase.RESTORE, previous_seconds=seconds))
        digest = point.manifest_sha256
        self._tell(Resumed(checkpoint_id=point.checkpoint_id, step=point.step, state_digest=digest))
        return state

    def _begun(self, process: asyncio.subprocess.Process, how: str) -> None:
        super()._begun(process, how)
        self._told_at = time.monotonic()
        self._tell(TrainerStarted(pid=process.pid))

    # ---- what may be asked of it -----------------------------------------------------------------

    def drain(self, grace_seconds: float, reason: KilledFor = KilledFor.STOPPED) -> None:
        super().drain(grace_seconds, reason)
        if self.pid is None:
            self._given_up.set()

    def leave(self, step: int | None) -> None:
        """One that has not connected yet hears of it as it does."""
        self._leaves = ProgramLeaves(step=step)
        if self._writer is not None:
            self._send(self._leaves)

    def _greet(self) -> None:
        super()._greet()
        if self._leaves is not None:
            self._send(self._leaves)

    def kill(self, why: str, reason: KilledFor) -> None:
        super().kill(why, reason)
        self._given_up.set()

    def accepted(self, message: ToTrainerAccepted) -> None:
        """A program knows nothing of the acceptance beside its checkpoint: the agent leaves it."""
        step = message.acceptance.step
        try:
            write_acceptance(Path(self.start.spec.checkpoint_uri(step)), message.acceptance)
        except OSError as error:
            log.error("the acceptance of step %d could not be stored: %s", step, error)
        super().accepted(message)
        self._settled(step)

    def refused(self, step: int, why: str) -> None:
        self._send(FolderRefused(step=step, reason=why))
        self._settled(step)

    def _settled(self, step: int) -> None:
        if step in self._offered:
            self._offered[step].set()

    # ---- its steps -------------------------------------------------------------------------------

    def _tell(self, event: KnownEvent | Unknown) -> None:
        if isinstance(event, StacksTaken):
            event = event.model_copy(update={"stacks": self.shown(event.stacks)})
        super()._tell(event)
        if not isinstance(event, StepCompleted):
            return
        waited = event.data_wait
        if pace := self._pace.add(event.step, event.seconds, event.seconds - waited, waited):
            super()._tell(pace)
        if event.step >= self._job.steps and not self._finishing:
            self._finishing = True
            super()._tell(PhaseEntered(phase=Phase.FINISH, previous=Phase.TRAIN))

    def _look_after(self, event: KnownEvent | Unknown) -> None:
        """It may tell only some of its steps: how long it is silent then counts, not their time."""
        if isinstance(event, StepCompleted | StepBeat):
            now = time.monotonic()
            gap, self._told_at = now - self._told_at, now
            event = event.model_copy(update={"seconds": gap})
        super()._look_after(event)

    def _tell_lines(self, lines: tuple[str, ...]) -> None:
        if not self._speaks:
            for line in self._steps.read(lines):
                self._tell_step(line.step, line.loss)
        super()._tell_lines(tuple(map(self.shown, lines)))

    def _tell_step(self, step: int, loss: float | None) -> None:
        gained = max(1, step - self._last_told)
        seconds = (time.monotonic() - self._told_at) / gained
        self._last_told = step
        if self.start.rank > 0:
            self._tell(StepBeat(step=step, seconds=seconds, data_wait=0.0))
            return
        self._tell(
            StepCompleted(
                step=step,
                loss=math.nan if loss is None else loss,
                grad_norm=math.nan,
                learning_rate=math.nan,
                tokens=0,
                seconds=seconds,
                data_wait=0.0,
                batch_hash="",
            )
        )

    @property
    def _speaks(self) -> bool:
        """Whether it tells of itself through `worker.client`; what it says is not read as well."""
        return self._writer is not None

    def shown(self, text: str) -> str:
        return hide(text, self._hidden)

    # ---- its checkpoints -------------------------------------------------------------------------

    def _hear_other(self, event: Unknown) -> bool:
        if event.kind != "folder":
            return False
        try:
            saved = FolderSaved.model_validate(event.model_dump())
        except ValidationError:
            log.error("attempt %d: the program offers no folder: %.200r", self.attempt, event)
            return True
        self._begin(self._take(saved.step, Path(saved.path), None, saved.request))
        return True

    async def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS and not self._speaks:
            self._looked_at = now
            self._begin(self._take_found())  # whoever follows the output may end any time

    async def _take_found(self, *, ended: bool = False) -> None:
        if self.start.rank > 0:
            return
        async with self._looking:
            found = await asyncio.to_thread(self._folders.look, time.monotonic(), ended=ended)
            for step, path in found:
                self._begin(self._take(step, path, path.relative_to(self._storage).as_posix()))

    async def _take(self, step: int, path: Path, place: str | None, request: int = 0) -> None:
        """One after the other: what is hashed at the same time is hashed no faster."""
        async with self._taking:
            self._tell(Saving(step=step, active=True))
            began = time.monotonic()
            try:
                manifest, sha256 = await asyncio.to_thread(
                    folders.take, self.start.spec, step, path, place
                )
            except (folders.CanNotTake, OSError) as error:
                self._tell(SaveFailed(step=step, reason=str(error)))
                self.refused(step, str(error))
            else:
                self._offered[step] = asyncio.Event()
                seconds = time.monotonic() - began
                self._tell(self._written(step, manifest, sha256, seconds, request, place))
            self._tell(Saving(step=step, active=False))

    def _written(
        self,
        step: int,
        manifest: Manifest,
        sha256: str,
        seconds: float,
        request: int,
        place: str | None,
    ) -> CheckpointWritten:
        spec = self.start.spec
        return CheckpointWritten(
            checkpoint_id=spec.checkpoint_id(step),
            step=step,
            uri=spec.checkpoint_uri(step),
            bytes=manifest.bytes,
            files=len(manifest.files),
            manifest_sha256=sha256,
            state_digest=manifest.state_digest,
            stall_seconds=seconds if place is None else 0.0,  # a program that asks waits
            write_seconds=seconds,
            final=step >= self._job.steps or self._draining,
            save_request=request,
        )

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- its end ---------------------------------------------------------------------------------

    def _end_grace(self) -> None:
        """Not yet: what it wrote last may still wait for its acceptance."""

    async def _last_words(self, code: int) -> None:
        """What it wrote just before its end counts before its end is told."""
        self._look_after(PhaseEntered(phase=Phase.FINISH))
        means = meaning_of(self._job, code)
        if not self._speaks:
            await self._take_found(ended=means in (Meaning.DONE, Meaning.DRAINED))
        giving_up = asyncio.ensure_future(self._given_up.wait())
        settled = asyncio.ensure_future(self._until_settled())
        await asyncio.wait((settled, giving_up), return_when=asyncio.FIRST_COMPLETED)
        for task in (settled, giving_up):
            task.cancel()
        super()._end_grace()
        self._explain(code, means)

    async def _until_settled(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks)
        for offered in self._offered.values():
            await offered.wait()

    def _explain(self, code: int, means: Meaning | None) -> None:
        point, given = self.start.spec.resume, code in self._job.reads.exit_codes
        if means is Meaning.CHECKPOINT_REJECTED and point is not None:
            why = f"the program could not begin with it (exit code {code})"
            self._tell(CheckpointRejected(checkpoint_id=point.checkpoint_id, reason=why))
        if means is Meaning.OUT_OF_MEMORY:
            words = f"Out of memory, as its exit code {code} says"
            self._tell(TrainerFailed(exit_code=code, error=words))
        elif given and means not in (Meaning.DONE, Meaning.DRAINED):
            words = f"its exit code {code} says {means}"
            self._tell(TrainerFailed(exit_code=code, error=words))

    def _exit_of(self, code: int | None, why: str | None, killed: bool = False) -> TrainerExited:
        means = meaning_of(self._job, code)
        exited = super()._exit_of(known_as(code, means), why, killed)
        return exited.model_copy(update={"last_lines": tuple(map(self.shown, exited.last_lines))})
