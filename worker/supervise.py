"""One trainer under watch: its start, its socket, its output and its end.

Owns a single process from spawn to reaped. Reports through callbacks and decides nothing: which
attempt may run is the agent's matter. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ValidationError

from worker import stacks
from worker.hang import Vigil
from worker.host import HostFolder, ProcessId, TrainerRecord, kill_group, until_unlocked
from worker.launching import Launch, NotLaunched, trainer_environment
from worker.memory_killer import MemoryWatch
from worker.protocol import (
    EVENT,
    PROCESS_WAS,
    CommandSpec,
    ExitCode,
    KilledFor,
    KnownEvent,
    LogLines,
    StacksTaken,
    StartTrainer,
    StepBeat,
    StepCompleted,
    ToTrainerAccepted,
    ToTrainerDrain,
    ToTrainerSave,
    TrainerExited,
    TrainerStarted,
    Unknown,
)
from worker.tail import Tail, last_lines

EVENT_LINE_BYTES = 4 << 20
TAIL_SECONDS = 0.1
DRAIN_SOCKET_SECONDS = 1.0  # a child of a dead trainer may hold its socket open
LOCK_SECONDS = 5.0
# What only an agent may say.
AGENTS_OWN = frozenset(
    {"trainer_exited", "log", "host_notice", "stacks", "checkpoint_verified", "files_deleted"}
)
SPARES_OWN = "spare_ready"  # of a spare that was given its order meanwhile
STILL_SECONDS = 5.0  # whoever did nothing for so long is asked what it does before it is killed
log = logging.getLogger("longhaul.agent")

OnEvent = Callable[[KnownEvent | Unknown], None]


class Waiting(Protocol):
    """A trainer's process that has connected and awaits its order."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader | None
    writer: asyncio.StreamWriter | None


class Trainer:
    """`on_event` gets everything that the trainer and its watcher tell, its exit last.

    `ended` is set once the exit was told: the process is reaped then, and its lock free.
    `numerics_key` and `first_step_at` (monotonic seconds) are set once the trainer tells of them.
    A process that was `waiting` for an order is given this one instead of starting another.
    """

    def __init__(
        self,
        folder: HostFolder,
        start: StartTrainer,
        argv: Sequence[str],
        on_event: OnEvent,
        waiting: Waiting | None = None,
    ) -> None:
        self.start = start
        self.attempt = start.spec.attempt
        self.ended = asyncio.Event()
        self.numerics_key: str | None = None
        self.first_step_at: float | None = None
        self._waiting = waiting
        self._folder = folder
        self._argv = (*argv, "--socket", folder.socket_path(self.attempt))
        self._on_event = on_event
        self._log_file = folder.log_file(self.attempt, start.rank)
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._last_step: int | None = None
        self._why_killed: str | None = None
        self._ended_for: KilledFor | None = None
        self._memory = MemoryWatch.begin(time.clock_gettime(time.CLOCK_BOOTTIME))
        self._draining = False
        self._grace: asyncio.TimerHandle | None = None
        own = isinstance(start.spec.job, CommandSpec)
        self._vigil = Vigil(start.spec.job.policy.hang, time.monotonic(), told_seldom=own)
        self._ending = False

    async def run(self) -> None:
        """Spawns the trainer and stays until it is known dead. Must run in the main thread.

        The kernel kills a trainer when the thread that forked it ends.
        """
        if self._waiting is not None:
            await self._run_waiting(self._waiting)
            return
        path = self._argv[-1]
        Path(path).unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._connected, path, limit=EVENT_LINE_BYTES)
        async with server:
            try:
                tail = Tail(self._log_file, whole_in=self._whole_in)
                process = await self._spawn()
                if process is not None:
                    await self._watch(process, tail)
            finally:
                Path(path).unlink(missing_ok=True)
                self.ended.set()

    async def _run_waiting(self, waiting: Waiting) -> None:
        assert waiting.reader is not None
        assert waiting.writer is not None
        try:
            self._log_file.touch(mode=0o600)
            tail = Tail(self._log_file, whole_in=self._whole_in)
            self._begun(waiting.process, "the spare")
            talk = self._connected(waiting.reader, waiting.writer)
            self._reading = asyncio.create_task(talk)
            await self._watch(waiting.process, tail)
        finally:
            self.ended.set()

    async def _spawn(self) -> asyncio.subprocess.Process | None:
        """None where the system could not start it; its exit is told then."""
        try:
            launch = await self._launch()
            with self._log_file.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *launch.argv,
                    cwd=launch.cwd,
                    env=launch.environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except NotLaunched as error:
            log.error("attempt %d: the trainer is not started: %s", self.attempt, error)
            why = str(error) if error.code is None else None
            self._on_event(self._exit_of(error.code, why))
            return None
        except OSError as error:
            log.error("attempt %d: the trainer can not be started: %s", self.attempt, error)
            self._on_event(self._exit_of(None, f"it could not be started: {error}"))
            return None
        self._begun(process, "trainer started")
        return process

    async def _launch(self) -> Launch:
        return Launch(self._argv, self._folder.root, trainer_environment())

    def _begun(self, process: asyncio.subprocess.Process, how: str) -> None:
        self._process = process
        log.info("attempt %d: %s, pid %d", self.attempt, how, process.pid)
        self._record(process.pid)
        if self._why_killed is not None:  # asked for while it was being spawned
            kill_group(process.pid)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _record(self, pid: int) -> None:
        """For the next agent. Without the record the trainer's lock still tells of it."""
        process = ProcessId.of(pid)
        if process is not None:
            with contextlib.suppress(OSError):
                record = TrainerRecord(process, self.attempt, self.start.rank)
                self._folder.record_trainer(record)

    async def _watch(self, process: asyncio.subprocess.Process, tail: Tail) -> None:
        following = asyncio.create_task(self._follow(tail))
        code = await process.wait()
        following.cancel()
        self._end_grace()
        kill_group(process.pid)  # its children, if it left any
        await self._read_to_the_end()
        self._tell_lines(tail.finish())
        await self._last_words(code)
        if not await until_unlocked(self._folder.trainer_lock, LOCK_SECONDS):
            log.error("attempt %d: a child of the dead trainer holds trainer.lock", self.attempt)
        killed = code == -signal.SIGKILL and self._why_killed is not None
        exited = self._exit_of(code, self._why_killed if killed else None, killed)
        if code == -signal.SIGKILL and not killed:
            words = await asyncio.to_thread(self._memory.line, process.pid)
            exited = exited.model_copy(update={"memory_killer": words})
        self._on_event(exited)
        self._folder.forget_trainer()
        log.info("attempt %d: trainer ended with %d", self.attempt, code)

    def _end_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()

    async def _last_words(self, code: int) -> None:
        """Of a process that ended with `code`, before that is told."""

    def _exit_of(self, code: int | None, why: str | None, killed: bool = False) -> TrainerExited:
        return TrainerExited(
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            last_step=self._last_step,
            last_lines=last_lines(self._log_file),
            killed_by_agent=killed,
            why_killed=why,
            killed_for=self._ended_for if killed or code == ExitCode.DRAINED else None,
        )

    # ---- what may be asked of it -----------------------------------------------------------------

    def accepted(self, message: ToTrainerAccepted) -> None:
        self._send(message)

    def refused(self, step: int, why: str) -> None:
        """A checkpoint does not count. Our own trainer saves again when its time comes."""

    def drain(self, grace_seconds: float, reason: KilledFor = KilledFor.STOPPED) -> None:
        """Asks it to save and leave; it is killed when the grace is over. Asking again is idle."""
        if self._draining or self.ended.is_set():
            return
        self._draining = True
        self._ended_for = self._ended_for or reason
        log.info("attempt %d: drain, %.0f s of grace", self.attempt, grace_seconds)
        why = f"it had not left {grace_seconds:g} s after it was asked to"
        self._grace = asyncio.get_running_loop().call_later(grace_seconds, self.kill, why, reason)
        if self._writer is not None:
            self._send(ToTrainerDrain())
        elif self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def save(self, request: int) -> None:
        """Asks it to save at its next step and go on; the trainer serves each request once."""
        if self._writer is not None and not self.ended.is_set():
            self._send(ToTrainerSave(request=request))

    def leave(self, step: int | None) -> None:
        """The gang leaves after `step`, or asks when this process can. Our own trainers agree on
        that among themselves."""

    def kill(self, why: str, reason: KilledFor) -> None:
        """SIGKILL to its whole process group. The first reason is the one that is told."""
        if self.ended.is_set():
            return
        self._why_killed = self._why_killed or why
        self._ended_for = self._ended_for or reason
        if self._process is not None and self._process.returncode is None:
            log.info("attempt %d: killing the trainer: %s", self.attempt, why)
            kill_group(self._process.pid)

    def strike(self) -> None:
        """SIGKILL as from outside: its end is told as that of any process that was killed."""
        if self._process is not None and self._process.returncode is None:
            kill_group(self._process.pid)

    # ---- whether it gets on ----------------------------------------------------------------------

    def overdue(self) -> str | None:
        """Why it counts as hung; None while it does not, or is about to leave anyhow."""
        busy = self._draining or self._ending or self.ended.is_set()
        return None if busy else self._vigil.overdue(time.monotonic())

    def slept(self, seconds: float) -> None:
        """The agent stood still for so long, and heard nothing."""
        self._vigil.slept(seconds)

    async def end(self, why: str, reason: KilledFor) -> None:
        """Kills it, after a look at what it does if it has stood still; returns once it is dead."""
        process, still = self._process, self._vigil.still_for(time.monotonic())
        if process is not None and process.returncode is None and still > STILL_SECONDS:
            self._ending = True
            seen = await stacks.take(process.pid, self._log_file)
            if seen.stopped and reason is KilledFor.SUPERSEDED:
                reason = KilledFor.HUNG
                why = f"{PROCESS_WAS} {seen.state} and had done nothing for {still:.0f} s; {why}"
            elif reason is KilledFor.HUNG:
                where = f" in {seen.place}" if seen.place else ""
                why = f"{why}; {PROCESS_WAS} {seen.state}{where}"
            if not self.ended.is_set():
                self._tell(StacksTaken(why=why, state=seen.state, stacks=seen.text))
        self.kill(why, reason)
        await self.ended.wait()

    # ---- its socket ------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._writer is not None:
            writer.close()
            return
        self._writer = writer
        self._reading = asyncio.current_task()
        self._greet()
        try:
            with contextlib.suppress(ConnectionError):
                await self._read(reader)
        finally:
            writer.transport.abort()  # a polite close can wait for ever on one that reads nothing

    def _greet(self) -> None:
        self._send(self.start)
        if self._draining:
            self._send(ToTrainerDrain())

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                log.error("attempt %d: a line over %d bytes", self.attempt, EVENT_LINE_BYTES)
                continue
            if not line.endswith(b"\n"):
                return
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            event = EVENT.validate_json(line)
        except ValidationError:
            log.error("attempt %d: the trainer sent no event: %.200r", self.attempt, line)
            return
        if event.kind in AGENTS_OWN:
            log.error("attempt %d: the trainer may not send %r", self.attempt, event.kind)
            return
        if event.kind == SPARES_OWN:
            return
        if isinstance(event, Unknown) and self._hear_other(event):
            return
        self._tell(event)

    def _hear_other(self, event: Unknown) -> bool:
        """Whether it was meant for the agent alone."""
        return False

    def _tell(self, event: KnownEvent | Unknown) -> None:
        if isinstance(event, StepCompleted | StepBeat):
            self._last_step = event.step
            self.first_step_at = self.first_step_at or time.monotonic()
        if isinstance(event, TrainerStarted):
            self.numerics_key = event.numerics_key
        self._look_after(event)
        self._on_event(event)

    def _look_after(self, event: KnownEvent | Unknown) -> None:
        self._vigil.saw(event, time.monotonic())

    def _send(self, message: BaseModel) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(message.model_dump_json().encode() + b"\n")

    async def _read_to_the_end(self) -> None:
        """Takes what the dead trainer had still written to its socket."""
        if self._reading is not None:
            _, unfinished = await asyncio.wait([self._reading], timeout=DRAIN_SOCKET_SECONDS)
            for task in unfinished:
                task.cancel()

    def shown(self, text: str) -> str:
        """What of its output may leave the host."""
        return text

    # ---- its output ------------------------------------------------------------------------------

    @property
    def _whole_in(self) -> str:
        return f"{self.start.spec.storage}/logs"

    async def _follow(self, tail: Tail) -> None:
        while True:
            await asyncio.sleep(TAIL_SECONDS)
            self._tell_lines(tail.read())
            await self._look()

    async def _look(self) -> None:
        """At what else the trainer shows beside its words."""

    def _tell_lines(self, lines: tuple[str, ...]) -> None:
        if lines:
            self._on_event(LogLines(lines=lines))
