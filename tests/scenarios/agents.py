"""The agents of the simulated world: the same promises as `worker.agent`, in single moments.

An agent buries its predecessor's trainer before it registers, delivers its spool in order until it
is acknowledged, fences an attempt with the first stop that it hears of, and offers a checkpoint
once everything before it is stored.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

from orchestrator.store.callers import (
    AgentRefused,
    BadSecret,
    GroupNotWanted,
    OldInstance,
    StaleAttempt,
)
from tests.scenarios.world import Host, Trainer, World
from worker.protocol import (
    PROTOCOL_VERSION,
    AgentReport,
    AttemptSpec,
    CheckpointAccepted,
    CheckpointOffer,
    CheckpointRejected,
    CheckpointVerified,
    CheckpointWritten,
    Command,
    DeleteCheckpoints,
    DrainTrainer,
    FilesDeleted,
    HostFacts,
    HostNotice,
    KilledFor,
    KillTrainer,
    Notice,
    Register,
    Registered,
    ReportAnswer,
    Retire,
    SaveNow,
    StartTrainer,
    TrainerExited,
)

ORPHANED = "its agent ended without seeing its exit"
STEP_LIMIT_SECONDS = 20.0


def dead_man_of(trainer: Trainer) -> float | None:
    """After how long without an answer its agent stops it."""
    return trainer.spec.job.policy.dead_man_seconds


class Away(Exception):
    """No answer came."""


class Line(Protocol):
    """The way to the control plane. Raises `Away` or `AgentRefused`."""

    def call(self, message: Any, secret: str) -> Any: ...


class Agent:
    def __init__(self, world: World, host: Host, secret: str, instance: str, line: Line) -> None:
        self.host = host
        self.secret = secret
        self.instance = instance
        self.registered = False
        self.known = ""
        self.news = True  # the next heartbeat is due at once
        self.heard_at = 0.0
        self.answer_at: datetime | None = None
        self.commands: tuple[Command, ...] = ()
        self.offers: list[tuple[CheckpointWritten, AttemptSpec, int]] = []
        self.proofs: list[tuple[CheckpointWritten, AttemptSpec]] = []
        self.deleting: list[tuple[str, int]] = []
        self.acked = 0
        self.fails_to_start = False
        self.protocol = PROTOCOL_VERSION
        self._world = world
        self._line = line
        self._port = 4000

    @property
    def trainer(self) -> Trainer | None:
        return self.host.live_trainer

    # ---- one moment ------------------------------------------------------------------------------

    def boot(self) -> None:
        """Buries what an earlier agent left, then registers."""
        host = self.host
        if self.trainer is not None:
            self.trainer.lingers = 1
            return
        if host.recorded is not None:
            attempt, rank = host.recorded
            host.fence = max(host.fence, attempt)
            exited = TrainerExited(exit_code=None, why_killed=ORPHANED)
            self._world.tell(host, attempt, rank, exited)
            host.recorded = None
        facts = HostFacts(
            hostname="h",
            address="127.0.0.1",
            free_port=self._free_port(),
            cpus=1,
            memory_bytes=1,
            disk_free_bytes=1,
            python="3",
        )
        call = Register(
            protocol=self.protocol,
            group=host.group,
            host=host.index,
            instance=self.instance,
            facts=facts,
        )
        answer = self._call(call)
        if isinstance(answer, Registered):
            self.registered = True
            self._ack(answer.acked_seq)
            self.answer_at = answer.at
            self._hear(answer.commands)

    def deliver(self, at_most: int = 200) -> None:
        """The oldest events that are not acknowledged yet."""
        answer = self._call(self._report(tuple(self.host.spool[:at_most])))
        if isinstance(answer, ReportAnswer):
            self._take(answer)

    def poll(self) -> None:
        self.news = False
        answer = self._call(self._report(()))
        if isinstance(answer, ReportAnswer):
            self._take(answer)
        else:
            self.news = True

    def offer(self) -> None:
        ready = [offer for offer in self.offers if offer[2] <= self.acked]
        if not ready:
            return
        written, spec, _ = ready[0]
        call = CheckpointOffer(
            group=self.host.group,
            host=self.host.index,
            instance=self.instance,
            run_id=spec.run_id,
            attempt=spec.attempt,
            checkpoint=written,
        )
        try:
            answer = self._line.call(call, self.secret)
        except Away:
            return
        except BadSecret:
            self.offers.remove(ready[0])
            return
        except AgentRefused:
            self.offers.remove(ready[0])
            why = "its attempt is no longer the current one"
            self._kill(spec.attempt, why, KilledFor.SUPERSEDED)
            return
        assert isinstance(answer, CheckpointAccepted)
        self.offers.remove(ready[0])
        if self.protocol >= PROTOCOL_VERSION:
            self.proofs.append((written, spec))
        if self.trainer is not None and self.trainer.spec.attempt == spec.attempt:
            self.trainer.accepted.append(answer.checkpoint_id)
            self._world.storage[written.uri].accepted = True

    def obey(self) -> None:
        for command in self.commands:
            match command:
                case StartTrainer():
                    self._start(command)
                case DrainTrainer():
                    self._drain(command)
                case KillTrainer():
                    self._kill(command.attempt, command.reason, KilledFor.SUPERSEDED)
                case SaveNow():
                    key = (self.host.group.split("-")[2], command.attempt)
                    self._world.save_asked[key] = command.request
                case DeleteCheckpoints():
                    self._unmark(command)
                case Retire():
                    self.leave("it is retired")
        self.commands = ()

    def keep(self) -> None:
        """Proves what it has saved, and removes what it has unmarked."""
        if self.deleting:
            uri, attempt = self.deleting.pop()
            self._world.storage[uri].erased = True
            self._world.tell(self.host, attempt, self.host.index, FilesDeleted(uri=uri))
        elif self.proofs:
            self._prove(*self.proofs.pop(0))

    def _unmark(self, command: DeleteCheckpoints) -> None:
        for uri in command.uris:
            blob = self._world.storage[uri]
            if not blob.given_up:
                self._world.broken(f"inv. 7: {uri} is removed, and the ledger has not given it up")
            blob.whole = False
            self.deleting.append((uri, command.attempt))

    def _prove(self, written: CheckpointWritten, spec: AttemptSpec) -> None:
        blob, name = self._world.storage[written.uri], written.checkpoint_id
        if self._world.storage_down_until > self._world.clock.monotonic():
            return
        blob.proven = blob.proven or blob.whole
        event: CheckpointVerified | CheckpointRejected
        event = CheckpointVerified(checkpoint_id=name, seconds=0.1)
        if not blob.whole:
            event = CheckpointRejected(checkpoint_id=name, reason="a file has other content")
            blob.rejected_by.add(spec.run_id)
            if blob.step >= spec.job.steps:
                self._world.harm("last checkpoint set apart", self.host.group)
        self._world.tell(self.host, spec.attempt, self.host.index, event)

    def watch(self) -> None:
        """Ends a trainer that stands still, or whose control plane is away for too long."""
        trainer, now = self.trainer, self._world.clock.monotonic()
        if trainer is None:
            return
        if trainer.hung_since is not None and now - trainer.hung_since > STEP_LIMIT_SECONDS:
            why = f"no step for {STEP_LIMIT_SECONDS:g} s"
            self._world.kill(trainer, why, KilledFor.HUNG)
            return
        limit = dead_man_of(trainer)
        if limit is None or trainer.draining or now - self.host.answered_at <= limit:
            return
        trainer.draining = True
        trainer.drain_until = now + trainer.spec.job.policy.grace_seconds
        trainer.drained_for = KilledFor.DEAD_MAN
        self._world.dead_man(trainer)

    def notice(self, notice: Notice, seconds: float) -> None:
        """The host is told that it will go: the gang saves and leaves while it can."""
        if self.trainer is not None:
            told = HostNotice(notice=notice, source="metadata", text=f"{notice} soon")
            self._world.tell(self.host, self.trainer.spec.attempt, self.host.index, told)
        if self.trainer is not None and not self.trainer.draining:
            self.trainer.draining = True
            grace = min(seconds, self.trainer.spec.job.policy.grace_seconds)
            self.trainer.drain_until = self._world.clock.monotonic() + grace
            self.trainer.drained_for = KilledFor.NOTICE

    def leave(self, why: str) -> None:
        """Ends the trainer, delivers what it can, and is gone."""
        if self.trainer is not None:
            self._world.kill(self.trainer, why, KilledFor.LEAVING)
        if self.registered and self.host.spool:
            self.deliver()
        if self.host.agent is self:
            self.host.agent = None

    # ---- commands --------------------------------------------------------------------------------

    def _hear(self, commands: tuple[Command, ...]) -> None:
        """A stop fences from the moment that it is heard of."""
        for command in commands:
            newer = isinstance(command, DeleteCheckpoints) or (
                isinstance(command, StartTrainer) and command.spec.job.checkpoint.keep is not None
            )
            if newer and self.protocol < PROTOCOL_VERSION:
                self._world.broken(f"{self.instance} speaks protocol 2 and is told {command}")
            if isinstance(command, KillTrainer | DrainTrainer):
                self.host.fence = max(self.host.fence, command.attempt)
        self.commands = commands

    def _start(self, command: StartTrainer) -> None:
        attempt, host = command.spec.attempt, self.host
        if attempt <= host.fence:
            return
        host.fence = attempt
        if self.trainer is not None:
            why = f"attempt {attempt} takes its place"
            self._world.kill(self.trainer, why, KilledFor.SUPERSEDED)
        if self.fails_to_start:
            self.fails_to_start = False
            exited = TrainerExited(exit_code=None, why_killed="it could not be started: no space")
            self._world.tell(host, attempt, command.rank, exited)
            return
        self._world.spawn(host, command.spec, command.rank)

    def _drain(self, command: DrainTrainer) -> None:
        trainer = self.trainer
        if trainer is not None and trainer.spec.attempt == command.attempt:
            if not trainer.draining:
                trainer.drain_until = self._world.clock.monotonic() + command.grace_seconds
            trainer.draining = True

    def _kill(self, attempt: int, reason: str, killed_for: KilledFor) -> None:
        trainer = self.trainer
        if trainer is not None and trainer.spec.attempt <= attempt:
            self._world.kill(trainer, reason, killed_for)

    # ---- calls -----------------------------------------------------------------------------------

    def _report(self, events: tuple[Any, ...]) -> AgentReport:
        return AgentReport(
            group=self.host.group,
            host=self.host.index,
            instance=self.instance,
            events=events,
            running_attempt=self.trainer.spec.attempt if self.trainer else None,
            free_port=self._free_port(),
            known_commands=self.known,
            answered_at=self.answer_at if self.protocol == PROTOCOL_VERSION else None,
        )

    def _free_port(self) -> int:
        self._port += 1
        return self._port

    def _call(self, message: Any) -> Any:
        """None where no answer came; an agent that is refused ends, and its trainer with it."""
        try:
            answer = self._line.call(message, self.secret)
        except Away:
            return None
        except (BadSecret, OldInstance, GroupNotWanted, StaleAttempt):
            if self.host.agent is self:
                if self.trainer is not None:
                    self._world.kill(self.trainer, "its agent is leaving", KilledFor.LEAVING)
                self.host.agent = None
            return None
        self.heard_at = self._world.clock.monotonic()
        return answer

    def _take(self, answer: ReportAnswer) -> None:
        self._ack(answer.acked_seq)
        self.answer_at = answer.at
        if answer.commands_digest != self.known:
            self.news = True
        self.known = answer.commands_digest
        self._hear(answer.commands)

    def _ack(self, seq: int) -> None:
        if seq > self.acked:
            self.acked = seq
            self.host.acked = max(self.host.acked, seq)
        self.host.spool = [envelope for envelope in self.host.spool if envelope.seq > self.acked]
