"""Agents of the protocol before: what they may be told, and when they are replaced.

An agent outlives the control plane that started it, and is served as long as the spec needs
nothing newer. Else, before it would start another trainer, it is replaced by one of today. Pure.
"""

from __future__ import annotations

from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Host
from worker.protocol import (
    PROTOCOL_VERSION,
    AnySpec,
    Command,
    DeleteCheckpoints,
    DrainTrainer,
    Drill,
    KillTrainer,
    LeaveAt,
    Retire,
    SaveNow,
    StandBy,
    StartTrainer,
)


def outdated(host: Host, job: AnySpec) -> bool:
    """Whether its registered agent speaks an older protocol than the spec needs."""
    registered = host.registered_at is not None and host.protocol is not None
    return registered and host.protocol is not None and host.protocol < job.needs_protocol


def can_not_start(snap: Snapshot, attempt: Attempt) -> list[Host]:
    """Outdated hosts whose trainer of the current attempt has not begun, and never will.

    Its agent must have been heard of since this control plane listens: what it started before, it
    tells then.
    """
    begun = {
        trainer.rank
        for trainer in snap.trainers
        if trainer.attempt == attempt.number
        and (trainer.exited or trainer.pid is not None or trainer.phase is not None)
    }
    return [
        host
        for host in snap.hosts
        if outdated(host, snap.job)
        and host.index not in begun
        and host.running_attempt != attempt.number
        and host.last_seen_at is not None
        and host.last_seen_at > snap.listening_since
    ]


def understood(protocol: int | None, commands: tuple[Command, ...]) -> tuple[Command, ...]:
    """Without those that an agent of `protocol` would refuse, and all others with them."""
    if protocol is None or protocol >= PROTOCOL_VERSION:
        return commands
    return tuple(one for one in commands if _needs(one) <= protocol)


def _needs(command: Command) -> int:
    """The first protocol whose agents know the command.

    A spec refuses fields that it does not know, so one that sets new ones needs a new agent.
    """
    match command:
        case StartTrainer(spec=spec):
            return spec.job.needs_protocol
        case DeleteCheckpoints() | StandBy() | LeaveAt() | Drill():
            return 3
        case SaveNow():
            return 2
        case DrainTrainer() | KillTrainer() | Retire():
            return 1
