"""The per-host supervisor: spawn, watch, spool, report, obey. Must not import JAX.

Owns one agent process: `python -m worker.agent --home FOLDER`, with {"group", "host", "secret"} as
JSON on its standard input. It first makes sure that no trainer of an earlier agent lives in the
folder, then registers, then talks until it is retired (exit 0) or superseded (exit 3). A control
plane that is away never hurts a healthy trainer.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path

from worker import watches
from worker.agent_log import HostLogs, start_log
from worker.calling import ProtocolRefused, Stale, Superseded, UplinkError
from worker.host import HostFolder, allowed_ports, free_port, until_unlocked
from worker.identity import CanNotStart, Identity
from worker.keeper import Keeper
from worker.predecessor import bury, raise_fence
from worker.program import Program
from worker.protocol import (
    CheckpointOffer,
    CheckpointWritten,
    Command,
    CommandSpec,
    DeleteCheckpoints,
    DrainTrainer,
    Drill,
    Evaluated,
    HostNotice,
    KilledFor,
    KillTrainer,
    KnownEvent,
    LeaveAt,
    LogLines,
    Notice,
    PhaseEntered,
    ResumePoint,
    Retire,
    SaveNow,
    StandBy,
    StartTrainer,
    StepBeat,
    StepCompleted,
    ToTrainerAccepted,
    TrainerExited,
    Unknown,
    Victim,
)
from worker.spares import GangGone, Spares
from worker.spool import Spool
from worker.supervise import Trainer, Waiting
from worker.supplies import HostSupplies
from worker.uplink import Uplink

TRAINER = (sys.executable, "-m", "worker.trainer")
FLUSH_SECONDS = 5.0
LOCK_SECONDS = 5.0
EXIT_REFUSED, EXIT_SUPERSEDED, EXIT_PROTOCOL = 2, 3, 4
NOTICE_GRACE_SECONDS = 20.0  # a machine that shuts down waits for its processes about so long
LOGS_SECONDS = 3.0  # so long an agent that leaves goes on keeping logs
LEAVE_SECONDS = 5.0  # so long a retired agent goes on deleting
STALE = "its attempt is no longer the current one"
log = logging.getLogger("longhaul.agent")


class Agent:
    """One life of the agent. `trainer` is the start of the trainer's command line."""

    def __init__(
        self, folder: HostFolder, identity: Identity, trainer: Sequence[str] = TRAINER
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._argv = tuple(trainer)
        self._ports = allowed_ports(os.environ)
        self._instance = secrets.token_hex(8)
        self._spool = Spool(folder.spool)
        self._keeper = Keeper()
        self._logs = HostLogs(folder, identity.host, self._tell_as)
        self._trainer: Trainer | None = None
        self._starting: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._commands: tuple[Command, ...] = ()
        self._commanded = asyncio.Event()
        self._retired = asyncio.Event()
        self._leaving = False
        self._stepped: set[int] = set()
        self._broken = asyncio.Event()
        self._spares = Spares(folder, self._argv, lambda: self._running, self._free_port)
        self._uplink = Uplink(
            group=identity.group,
            host=identity.host,
            secret=identity.secret,
            instance=self._instance,
            spool=self._spool,
            control_url=folder.control_url,
            running=self._running_attempt,
            port=self._free_port,
            obey=self._command,
            standby=lambda: self._spares.standby,
        )

        self._supplies = HostSupplies(
            folder.root, self._uplink, identity.group, identity.host, self._instance
        )

    @property
    def _running(self) -> Trainer | None:
        trainer = self._trainer
        return None if trainer is None or trainer.ended.is_set() else trainer

    def _free_port(self) -> int:
        return free_port(self._identity.address, self._ports)

    def _running_attempt(self) -> int | None:
        """Told from before the spawn until after the exit is in the spool, never less."""
        return self._running.attempt if self._running else self._starting

    async def run(self) -> None:
        """Until retired. Raises `Superseded` or `ProtocolRefused`; no trainer lives afterwards."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._retired.set)
        loop.add_signal_handler(signal.SIGTERM, self._noticed)
        self._logs.open()
        try:
            await self._first_of(self._retired.wait(), self._serve())
        finally:
            await self._end_trainer("its agent is leaving", KilledFor.LEAVING)
            await self._spares.close()
            await self._logs.close()
            if self._retired.is_set():
                await self._flush()
            await self._logs.kept(LOGS_SECONDS)
            await self._close()

    def _noticed(self) -> None:
        """SIGTERM is how a host says that it goes down."""
        words = "the agent got SIGTERM"
        self._host_goes(HostNotice(notice=Notice.SHUTDOWN, source="SIGTERM", text=words))

    def _host_goes(self, told: HostNotice) -> None:
        """Save what can be saved, then leave.

        A second notice, or one with nothing to save, ends the agent at once.
        """
        running = self._running
        if running is None or self._leaving:
            self._retired.set()
            return
        self._leaving = True
        log.warning("the host goes (%s): attempt %d saves and leaves", told.text, running.attempt)
        self._tell(told, running.start)
        grace = min(running.start.spec.job.policy.grace_seconds, NOTICE_GRACE_SECONDS)
        running.drain(grace, KilledFor.NOTICE)
        self._background(self._leave_after(running))

    async def _leave_after(self, running: Trainer) -> None:
        await running.ended.wait()
        self._retired.set()

    async def _serve(self) -> None:
        await bury(self._folder, self._spool)
        self._logs.adopt()
        await self._uplink.register(self._folder.facts(self._identity.address))
        log.info("registered as host %d of %s", self._identity.host, self._identity.group)
        talks = (self._uplink.send_events(), self._uplink.poll())
        others = (
            self._broken.wait(),
            watches.for_silence(lambda: self._running, lambda: self._uplink.silent_seconds),
            watches.for_hangs(lambda: self._running),
            watches.for_notices(self._host_goes),
            self._spares.keep(),
        )
        await self._first_of(*talks, self._obey(), *others)
        await asyncio.gather(*self._tasks)  # raises what broke

    async def _first_of(self, *works: Coroutine[object, object, object]) -> None:
        """Runs them side by side until one returns or fails, and ends the others."""
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    # ---- commands --------------------------------------------------------------------------------

    def _command(self, commands: tuple[Command, ...]) -> None:
        """The newest answer counts: each one holds all that is wanted of this host.

        A stop is a fence from this moment on, since the next report says that it is known here: a
        start of the same attempt may still arrive, with an answer that was overtaken.
        """
        for command in commands:
            if isinstance(command, KillTrainer | DrainTrainer):
                raise_fence(self._folder, command.attempt)
        self._spares.stand_by(next((one for one in commands if isinstance(one, StandBy)), None))
        self._commands = commands
        self._commanded.set()

    async def _obey(self) -> None:
        while True:
            await self._commanded.wait()
            self._commanded.clear()
            for command in self._commands:
                try:
                    await self._do(command)
                except OSError as error:
                    # A full disk, as a rule. The next answer brings the command again.
                    log.error("could not carry out %r: %s", command.kind, error)

    async def _do(self, command: Command) -> None:
        match command:
            case StartTrainer():
                await self._start(command)
            case DrainTrainer():
                if self._running and self._running.attempt == command.attempt:
                    self._running.drain(command.grace_seconds)
            case SaveNow():
                if self._running and self._running.attempt == command.attempt:
                    self._running.save(command.request)
            case LeaveAt():
                if self._running and self._running.attempt == command.attempt:
                    self._running.leave(command.step)
            case KillTrainer():
                await self._kill(command)
            case Drill():
                self._drill(command)
            case DeleteCheckpoints():
                self._delete(command)
            case StandBy():
                pass  # heeded as it came, since it holds for as long as it is told
            case Retire():
                log.info("retired by the control plane")
                await self._keeper.idle(LEAVE_SECONDS)
                self._retired.set()

    def _delete(self, command: DeleteCheckpoints) -> None:
        rank = self._identity.host
        self._keeper.delete(command, lambda gone: self._tell_as(gone, command.attempt, rank))

    async def _start(self, command: StartTrainer) -> None:
        attempt = command.spec.attempt
        if attempt <= self._folder.attempt_fence or self._leaving:
            return
        try:
            self._folder.raise_fence(attempt)
        except OSError as error:
            why = f"it could not be started: {error}"
            self._tell(TrainerExited(exit_code=None, why_killed=why), command)
            return
        self._starting = attempt
        try:
            await self._end_trainer(f"attempt {attempt} takes its place", KilledFor.SUPERSEDED)
            while not await until_unlocked(self._folder.trainer_lock, LOCK_SECONDS):
                log.error("attempt %d: something still holds trainer.lock; waiting", attempt)
            waiting = await self._spares.take(command)
        except GangGone as gone:
            self._tell(TrainerExited(exit_code=None, why_killed=str(gone)), command)
        else:
            trainer = self._made(command, waiting)
            self._trainer = trainer
            self._background(self._train(trainer))
        finally:
            self._starting = None

    async def _train(self, trainer: Trainer) -> None:
        try:
            await trainer.run()
        finally:
            self._logs.ended(trainer.start)

    def _made(self, command: StartTrainer, waiting: Waiting | None) -> Trainer:
        trainer = self._made_for(command, waiting)
        self._logs.begin(command, trainer.shown)
        return trainer

    def _made_for(self, command: StartTrainer, waiting: Waiting | None) -> Trainer:
        job = command.spec.job

        def tell(event: KnownEvent | Unknown) -> None:
            self._tell(event, command)

        if isinstance(job, CommandSpec):
            return Program(self._folder, command, job, self._supplies, tell)
        return Trainer(self._folder, command, self._argv, tell, waiting)

    async def _kill(self, command: KillTrainer) -> None:
        if self._running and self._running.attempt <= command.attempt:
            await self._end_trainer(command.reason, KilledFor.SUPERSEDED)

    def _drill(self, command: Drill) -> None:
        """A fault on purpose. Whoever dies of it tells nothing, as with a real one."""
        running = self._running
        if running is None or running.attempt != command.attempt:
            return
        log.warning("attempt %d: a drill kills the %s", command.attempt, command.victim)
        if command.victim is not Victim.AGENT:
            running.strike()
        if command.victim is not Victim.TRAINER:
            os.kill(os.getpid(), signal.SIGKILL)  # what it has started dies with it

    async def _end_trainer(self, why: str, reason: KilledFor) -> None:
        """Returns once the trainer, if one runs, is known dead and its exit is in the spool."""
        if self._running:
            await self._running.end(why, reason)

    # ---- events ----------------------------------------------------------------------------------

    def _tell(self, event: KnownEvent | Unknown, start: StartTrainer) -> None:
        seq = self._tell_as(event, start.spec.attempt, start.rank)
        if isinstance(event, CheckpointWritten):
            self._background(self._offer(event, start, seq))

    def _tell_as(self, event: KnownEvent | Unknown, attempt: int, rank: int) -> int:
        """Returns its number in the spool."""
        seq = self._spool.append(event, attempt, rank)
        self._uplink.ring(self._is_urgent(event, attempt))
        return seq

    def _is_urgent(self, event: KnownEvent | Unknown, attempt: int) -> bool:
        """What somebody waits for goes at once; a steady stream goes in batches."""
        if isinstance(event, StepCompleted | StepBeat):
            first = attempt not in self._stepped
            self._stepped = {attempt}
            return first
        return not isinstance(event, LogLines | Evaluated | PhaseEntered | Unknown)

    async def _offer(self, written: CheckpointWritten, start: StartTrainer, seq: int) -> None:
        """Delivers what came before the checkpoint, then asks that it counts."""
        await self._uplink.delivered(seq)
        offer = CheckpointOffer(
            group=self._identity.group,
            host=self._identity.host,
            instance=self._instance,
            run_id=start.spec.run_id,
            attempt=start.spec.attempt,
            checkpoint=written,
        )
        try:
            acceptance = await self._uplink.offer(offer)
        except Stale:
            await self._kill(KillTrainer(attempt=offer.attempt, reason=STALE))
        except UplinkError as error:
            log.error("checkpoint %s: %s", written.checkpoint_id, error)
            if self._running and self._running.attempt == offer.attempt:
                self._running.refused(written.step, str(error))
        else:
            self._spares.accepted(offer.attempt, _resume_point(written))
            if self._running and self._running.attempt == offer.attempt:
                self._running.accepted(ToTrainerAccepted(acceptance=acceptance))
            self._keeper.prove(written, lambda outcome: self._tell(outcome, start))

    # ---- ending ----------------------------------------------------------------------------------

    async def _flush(self) -> None:
        """Delivers what is spooled, as far as the control plane answers in time."""
        delivering = asyncio.wait_for(self._uplink.delivered(self._spool.last_seq), FLUSH_SECONDS)
        try:
            await self._first_of(delivering, self._uplink.send_events())
        except (TimeoutError, UplinkError) as error:
            log.warning("some events stay in the spool: %s", error or "no answer in time")

    def _background(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """A watcher that failed leaves nobody to watch: this agent ends, and the trainer too."""
        if not task.cancelled() and task.exception() is not None:
            self._broken.set()
        else:
            self._tasks.discard(task)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._uplink.close()
        self._spool.close()


def _resume_point(written: CheckpointWritten) -> ResumePoint:
    return ResumePoint(
        checkpoint_id=written.checkpoint_id,
        step=written.step,
        uri=written.uri,
        manifest_sha256=written.manifest_sha256,
    )


def serve(folder: HostFolder, trainer: Sequence[str]) -> int:
    """One agent's life; its exit code."""
    folder.prepare()
    start_log(folder)
    if folder.hold_agent_lock() is None:
        raise CanNotStart(f"another agent already serves {folder.root}; end it first")
    identity = Identity.parse(sys.stdin.read())
    identity.keep(folder.secrets)
    os.chdir(folder.root)
    try:
        asyncio.run(Agent(folder, identity, trainer).run())
    except Superseded as error:
        log.error("superseded, leaving: %s", error)
        return EXIT_SUPERSEDED
    except ProtocolRefused as error:
        log.error("the control plane needs another version of Longhaul on this host: %s", error)
        return EXIT_PROTOCOL
    log.info("left")
    return 0


def main(arguments: Sequence[str] | None = None, trainer: Sequence[str] = TRAINER) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.agent", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the host's folder")
    home: Path = parser.parse_args(arguments).home.absolute()
    try:
        return serve(HostFolder(home), trainer)
    except CanNotStart as error:
        log.error("%s", error)
        print(f"agent: {error}", file=sys.stderr)
        return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
