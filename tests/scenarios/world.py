"""What really happens: storage, hosts, trainers and what each of them wrote or told.

Owns the truth that the oracle reads. Knows no database and no control plane; the control plane
learns of it only through agents' reports and the provider's probes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from tests.scenarios.clock import FakeClock
from worker.protocol import (
    AttemptSpec,
    CheckpointRejected,
    CheckpointWritten,
    Envelope,
    ExitCode,
    Phase,
    PhaseEntered,
    Resumed,
    StepBeat,
    StepCompleted,
    TrainerExited,
    TrainerFailed,
    TrainerFinished,
    TrainerStarted,
)

MASK = (1 << 64) - 1


def first_state(run_id: str) -> int:
    return int.from_bytes(run_id.encode()[:8], "big")


def next_state(state: int, step: int) -> int:
    """The update that takes a run to `step`: whoever starts elsewhere ends elsewhere."""
    return (state * 6364136223846793005 + (2 * step + 1) * 1442695040888963407) & MASK


def loss_of(state: int) -> float:
    return (state >> 11) / (1 << 53)


def true_losses(run_id: str, steps: int) -> list[float]:
    """The loss after each step of an undisturbed run; index 0 is step 1."""
    state, losses = first_state(run_id), []
    for step in range(1, steps + 1):
        state = next_state(state, step)
        losses.append(loss_of(state))
    return losses


@dataclass
class Blob:
    """One checkpoint's directory."""

    step: int
    state: int
    whole: bool = True
    accepted: bool = False


@dataclass(eq=False)
class Trainer:
    """One process of a gang. `lingers` counts the moments that it outlives its agent by."""

    spec: AttemptSpec
    rank: int
    host: Host
    pid: int
    alive: bool = True
    phase: Phase = Phase.SPAWN
    step: int = 0
    state: int = 0
    draining: bool = False
    drain_until: float | None = None
    lingers: int | None = None
    accepted: list[str] = field(default_factory=list[str])

    @property
    def name(self) -> str:
        return f"{self.spec.run_id}/a{self.spec.attempt}/{self.rank}"


@dataclass(eq=False)
class Host:
    """A machine: its folder (spool, fence, record of the last trainer) outlives each agent."""

    group: str
    index: int
    skew: timedelta
    agent: Any = None
    trainer: Trainer | None = None
    fence: int = 0
    recorded: tuple[int, int] | None = None
    spool: list[Envelope] = field(default_factory=list[Envelope])
    last_seq: int = 0
    acked: int = 0

    @property
    def name(self) -> str:
        return f"{self.group.rpartition('-')[0][-4:]}{self.group.rpartition('-')[2]}h{self.index}"

    @property
    def live_trainer(self) -> Trainer | None:
        return self.trainer if self.trainer is not None and self.trainer.alive else None


@dataclass(eq=False)
class Group:
    name: str
    run_id: str
    hosts: list[Host]
    made_at: float
    up: bool = False


class World:
    """`started` is called with each trainer at the moment that it begins to live."""

    def __init__(self, rng: Random, clock: FakeClock) -> None:
        self.rng = rng
        self.clock = clock
        self.groups: dict[str, Group] = {}
        self.orphans: list[str] = []  # asked for by a leader that no longer led
        self.billed: dict[str, float] = {}
        self.storage: dict[str, Blob] = {}
        self.told: list[Envelope] = []
        self.owner: dict[int, tuple[str, Host]] = {}  # mark of an event -> run and host
        self.leave_at: dict[tuple[str, int], int] = {}
        self.started: Callable[[Trainer], None] = lambda _: None
        self.broken: Callable[[str], None] = lambda _: None
        self._pids = 0

    # ---- what lives ------------------------------------------------------------------------------

    def hosts(self) -> list[Host]:
        return [host for group in self.groups.values() for host in group.hosts]

    def trainers(self) -> list[Trainer]:
        return [host.trainer for host in self.hosts() if host.live_trainer and host.trainer]

    def gang(self, spec: AttemptSpec) -> list[Trainer]:
        """Every process of the attempt that was started and whose host exists, dead ones too."""
        of = (spec.run_id, spec.attempt)
        found = (host.trainer for host in self.hosts() if host.trainer is not None)
        return [t for t in found if (t.spec.run_id, t.spec.attempt) == of]

    def spawn(self, host: Host, spec: AttemptSpec, rank: int) -> Trainer:
        self._pids += 1
        trainer = Trainer(spec, rank, host, self._pids)
        self.started(trainer)
        host.trainer = trainer
        host.recorded = (spec.attempt, rank)
        return trainer

    # ---- what is told ----------------------------------------------------------------------------

    def tell(self, host: Host, attempt: int, rank: int, event: Any) -> int:
        """Into the host's spool; each event carries a mark by which it can be found again."""
        host.last_seq += 1
        mark = len(self.told) + 1
        envelope = Envelope(
            seq=host.last_seq,
            attempt=attempt,
            rank=rank,
            at=self.clock.now() + host.skew,
            mono=self.clock.monotonic(),
            event=event.model_copy(update={"mark": mark}),
        )
        host.spool.append(envelope)
        self.told.append(envelope)
        self.owner[mark] = (host.group.split("-")[2], host)
        return host.last_seq

    def say(self, trainer: Trainer, event: Any) -> None:
        """Over the socket to the agent; without one it is lost."""
        agent = trainer.host.agent
        if agent is not None:
            seq = self.tell(trainer.host, trainer.spec.attempt, trainer.rank, event)
            if isinstance(event, CheckpointWritten):
                agent.offers.append((event, trainer.spec, seq))

    def exit(
        self,
        trainer: Trainer,
        code: int | None = None,
        signal_number: int | None = None,
        why: str | None = None,
        lines: tuple[str, ...] = (),
    ) -> None:
        """The process is gone; its agent, if it lives, tells of it."""
        if not trainer.alive:
            return
        trainer.alive = False
        host = trainer.host
        if host.agent is None:
            return
        exited = TrainerExited(
            exit_code=code,
            signal=signal_number,
            last_step=trainer.step or None,
            last_lines=lines,
            killed_by_agent=why is not None,
            why_killed=why,
        )
        self.tell(host, trainer.spec.attempt, trainer.rank, exited)
        host.recorded = None

    def kill(self, trainer: Trainer, why: str) -> None:
        """By its agent."""
        self.exit(trainer, None, signal.SIGKILL, why)

    # ---- one moment of a trainer's life ----------------------------------------------------------

    def advance(self, trainer: Trainer) -> None:
        if trainer.lingers is not None:
            trainer.lingers -= 1
            if trainer.lingers <= 0:
                self.exit(trainer)
                return
        if trainer.drain_until is not None and trainer.drain_until <= self.clock.monotonic():
            self.kill(trainer, "it had not left after its grace")
            return
        match trainer.phase:
            case Phase.SPAWN:
                self._init(trainer)
            case Phase.RESTORE:
                self._restore(trainer)
            case Phase.TRAIN:
                self._train(trainer)
            case _:
                self._finish(trainer)

    def _init(self, trainer: Trainer) -> None:
        self.say(trainer, PhaseEntered(phase=Phase.INIT))
        trainer.phase = Phase.RESTORE

    def _restore(self, trainer: Trainer) -> None:
        self.say(trainer, TrainerStarted(pid=trainer.pid, numerics_key="k"))
        resume = trainer.spec.resume
        trainer.state = first_state(trainer.spec.run_id)
        trainer.phase = Phase.TRAIN
        if resume is None:
            return
        blob = self.storage.get(resume.uri)
        if blob is None or blob.step != resume.step:
            self.broken(f"inv. 6/7: {trainer.name} is to resume from {resume.uri}: {blob}")
            return
        if not blob.whole:
            reason = "a digest differs"
            self.say(trainer, CheckpointRejected(checkpoint_id=resume.checkpoint_id, reason=reason))
            self.fail(trainer, ExitCode.CHECKPOINT_REJECTED, reason)
            return
        trainer.step, trainer.state = blob.step, blob.state
        told = Resumed(
            checkpoint_id=resume.checkpoint_id, step=resume.step, state_digest=f"{blob.state:x}"
        )
        self.say(trainer, told)
        if trainer.step >= trainer.spec.job.steps:
            trainer.phase = Phase.FINISH

    def fail(self, trainer: Trainer, code: int, words: str) -> None:
        self.say(trainer, TrainerFailed(exit_code=code, error=words))
        self.exit(trainer, code)

    def _train(self, trainer: Trainer) -> None:
        """One update with all the others: it needs every process, none of them behind."""
        gang = self.gang(trainer.spec)
        if any(not peer.alive for peer in gang):
            self._lose_peer(trainer)
            return
        together = len(gang) == trainer.spec.process_count
        if not together or any(
            peer.phase is Phase.SPAWN or peer.phase is Phase.RESTORE or peer.step < trainer.step
            for peer in gang
        ):
            return
        key = (trainer.spec.run_id, trainer.spec.attempt)
        trainer.step += 1
        trainer.state = next_state(trainer.state, trainer.step)
        if key not in self.leave_at and any(peer.draining for peer in gang):
            self.leave_at[key] = max(peer.step for peer in gang) + 1
        self._report_step(trainer)
        leaving = self.leave_at.get(key) == trainer.step
        last = trainer.step >= trainer.spec.job.steps
        if leaving or last or trainer.step % trainer.spec.job.checkpoint.every_steps == 0:
            self._save(trainer)
        if leaving or last:
            trainer.phase = Phase.FINISH

    def _lose_peer(self, trainer: Trainer) -> None:
        chance = self.rng.random()
        if chance < 0.25:
            self.fail(trainer, ExitCode.PEER_LOST, "a collective failed")
        elif chance < 0.4:
            self.exit(trainer, None, signal.SIGABRT)

    def _report_step(self, trainer: Trainer) -> None:
        if trainer.rank:
            self.say(trainer, StepBeat(step=trainer.step, seconds=0.1, data_wait=0.0))
            return
        told = StepCompleted(
            step=trainer.step,
            loss=loss_of(trainer.state),
            grad_norm=1.0,
            learning_rate=0.1,
            tokens=16,
            seconds=0.1,
            data_wait=0.0,
            batch_hash=f"{trainer.spec.data_plan.batch_index(trainer.step):016x}",
        )
        self.say(trainer, told)

    def _save(self, trainer: Trainer) -> None:
        if trainer.rank:
            return
        spec, step = trainer.spec, trainer.step
        uri = spec.checkpoint_uri(step)
        if uri in self.storage:
            self.broken(f"inv. 2: {trainer.name} writes over {uri}")
        self.storage[uri] = Blob(step, trainer.state)
        written = CheckpointWritten(
            checkpoint_id=spec.checkpoint_id(step),
            step=step,
            uri=uri,
            bytes=1,
            files=1,
            manifest_sha256=f"{trainer.state:064x}",
            state_digest=f"{trainer.state:064x}",
            stall_seconds=0.0,
            write_seconds=0.0,
        )
        self.say(trainer, written)

    def _finish(self, trainer: Trainer) -> None:
        """The last checkpoint must count before anybody leaves."""
        spec, step = trainer.spec, trainer.step
        if spec.resume is None or spec.resume.step != step:
            if trainer.rank == 0 and spec.checkpoint_id(step) not in trainer.accepted:
                return
            saved = self.storage.get(spec.checkpoint_uri(step))
            if trainer.rank and (saved is None or not saved.accepted):
                return
        drained = step < spec.job.steps
        self.say(trainer, TrainerFinished(step=step, drained=drained))
        self.exit(trainer, ExitCode.DRAINED if drained else ExitCode.DONE)
