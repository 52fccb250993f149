"""A current attempt: what started, what stepped, who is dead, what is wished.

Pure. Its end is another module's matter (`ends`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.reconcile import pace, silence, stopping
from orchestrator.reconcile.ends import gang_ended
from orchestrator.reconcile.hosts import and_relaunch
from orchestrator.reconcile.plan import (
    BuryTrainer,
    Change,
    CloseIncident,
    MoveAttempt,
    MoveRun,
    Plan,
)
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Host, Trainer
from orchestrator.state import AttemptCause, AttemptState, Desired, RunCause, RunState
from worker.protocol import Victim

GROUP_GONE = "the provider has no trace of its host group"
RUNS_NOTHING = timedelta(minutes=2)  # an agent's report may be held back for one


def watch(snap: Snapshot, attempt: Attempt) -> Plan:
    """Follows the gang."""
    if snap.run.state is RunState.PROVISIONING:
        return Plan((MoveRun(RunCause.ATTEMPT_MADE),))
    buried = burials(snap, attempt)
    if buried:
        return and_relaunch(snap, Plan(buried))
    trainers = snap.gang(attempt)
    if all(trainer.exited for trainer in trainers):
        return gang_ended(snap, attempt, trainers)
    # What it did comes before what it is asked for: nothing but an end follows a stop.
    changes = (
        *silence.marks(snap, attempt),
        *_attempt_moves(attempt),
        *stopping.asked(snap, attempt),
        *_run_moves(snap, attempt),
        *pace.notes(snap, attempt),
    )
    plan = and_relaunch(snap, Plan(changes))
    return replace(plan, look_again_at=sooner(plan.look_again_at, silence.due(snap, attempt)))


def sooner(*times: datetime | None) -> datetime | None:
    return min((at for at in times if at is not None), default=None)


def burials(snap: Snapshot, attempt: Attempt) -> tuple[Change, ...]:
    """Trainers that died with their agent or their host: nobody saw their exit."""
    hosts = {host.index: host for host in snap.hosts}
    group_gone = snap.group is not None and snap.group.exists is False
    found: list[Change] = []
    for trainer in snap.gang(attempt):
        if trainer.exited:
            continue
        host = hosts.get(trainer.rank)
        lost = GROUP_GONE if group_gone else None
        dead = why_dead(host, attempt) or runs_nothing(snap, host, trainer, attempt)
        if dead is not None and attempt.drill is Victim.HOST and trainer.rank == 0:
            lost, dead = "a drill took its host away", None
        if lost is None and dead is not None:
            found.append(BuryTrainer(attempt.number, trainer.rank, dead))
            continue
        if lost is None and host is not None:
            lost = silence.given_up(snap, host, attempt)
        if lost is not None:
            found.append(BuryTrainer(attempt.number, trainer.rank, lost, host_gone=True))
    return tuple(found)


def why_dead(host: Host | None, attempt: Attempt) -> str | None:
    """How it is known that the attempt's trainer on a host that lives is dead."""
    if host is None or host.launched_at is None:
        return None
    # Only the agent that was there when the attempt was made can have started the trainer, and a
    # launch later than that is decided only once that agent is seen dead.
    relaunched = host.registered_at is None and host.launched_at > attempt.created_at
    if host.trainer_alive is False and (host.agent_alive is False or relaunched):
        return "its agent ended, and it with it"
    replaced = host.registered_at is not None and host.registered_at > attempt.created_at
    if replaced and host.running_attempt != attempt.number:
        return "its agent was replaced by a new one, which found no trainer alive"
    return None


def runs_nothing(
    snap: Snapshot, host: Host | None, trainer: Trainer, attempt: Attempt
) -> str | None:
    """How it is known that a trainer is dead, or never began, whose agent is well and silent of it.

    What was told is lost where the database went back in time (a backup, a standby that lagged).
    An agent that does not say how old its word is might have meant the time before the attempt.
    """
    if host is None or host.spoke_at is None or host.registered_at is None:
        return None
    if host.running_attempt == attempt.number or host.trainer_alive:
        return None
    told = (host.registered_at, attempt.created_at, trainer.phase_at, trainer.last_step_at)
    since = max(snap.hearing_since, *(at for at in told if at is not None))
    if host.spoke_at - since <= RUNS_NOTHING:
        return None
    return f"its agent runs nothing of attempt {attempt.number}, and told of no end"


def _attempt_moves(attempt: Attempt) -> tuple[Change, ...]:
    if attempt.state is AttemptState.REQUESTED and attempt.spawned_at is not None:
        return (MoveAttempt(attempt.number, AttemptCause.SPAWNED),)
    if attempt.state is AttemptState.STARTING and attempt.first_step_at is not None:
        return (MoveAttempt(attempt.number, AttemptCause.FIRST_STEP),)
    return ()


def _run_moves(snap: Snapshot, attempt: Attempt) -> tuple[Change, ...]:
    """The first step of an attempt ends the recovery, and the incident with it."""
    if attempt.first_step_at is None:
        return ()
    changes: list[Change] = []
    recovers = snap.run.state in (RunState.STARTING, RunState.RECOVERING)
    stops = stopping.why(snap, attempt)
    if recovers and snap.run.desired is Desired.RUN and stops is not stopping.Stop.LIMIT:
        changes.append(MoveRun(RunCause.FIRST_STEP))
    if snap.incident is not None and snap.incident.attempt < attempt.number:
        changes.append(CloseIncident(snap.incident.number, attempt.number))
    return tuple(changes)
