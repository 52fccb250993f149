"""The run is wanted, or was until now, and no attempt is current: from hosts to the next attempt.

Pure. An attempt is made only here, when the last one has ended and its hosts serve or are gone.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.reconcile import hosts
from orchestrator.reconcile.budgets import COUNTED, backoff, spent
from orchestrator.reconcile.cadence import chosen
from orchestrator.reconcile.evidence import Finding
from orchestrator.reconcile.following import ask, exhausted_words, lose_idle_group
from orchestrator.reconcile.plan import Change, MakeAttempt, MoveRun, Plan
from orchestrator.reconcile.resting import cancelled, no_beginning, over_limit
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.reconcile.stopping import wish_words
from orchestrator.reconcile.versions import outdated
from orchestrator.records import Attempt, Host, HostGroup
from orchestrator.state import RETRY_CLASS, Desired, GroupState, RunCause, RunState

FRESH_PORT_WAIT = timedelta(milliseconds=200)


def between_attempts(snap: Snapshot) -> Plan:
    run, group = snap.run, snap.group
    if run.state is RunState.STOPPING:
        return _stopped(snap)
    if run.desired is not Desired.RUN:
        return Plan((MoveRun(RunCause.STOP_ASKED, wish_words(run.desired)),))
    gives_up = over_limit(snap) or _exhausted(snap) or no_beginning(snap)
    if gives_up:
        return Plan(gives_up)
    if group is None or group.state is GroupState.GONE:
        return hosts.ask_for_hosts(snap)
    if group.state is GroupState.RELEASING or not hosts.fits(snap, group) or snap.leave is not None:
        return hosts.release(snap)
    match group.state:
        case GroupState.REQUESTED:
            return hosts.requested(snap, group)
        case GroupState.CREATING:
            return hosts.creating(snap, group)
        case GroupState.READY:
            return _ready(snap, group)


def _stopped(snap: Snapshot) -> Plan:
    """Settles the wish that was obeyed; a newer wish to run is left for the next round."""
    if snap.run.desired is Desired.CANCEL:
        return Plan(cancelled(snap, "cancelled"))
    if snap.run.desired is Desired.PAUSE:
        return Plan((MoveRun(RunCause.PAUSED, "paused by a person", settle=True),))
    move = MoveRun(RunCause.PAUSED, "it stopped, and is wanted again")
    return Plan(over_limit(snap) or (move,))


def _exhausted(snap: Snapshot) -> tuple[Change, ...]:
    """A verdict that was revised meanwhile may have spent what was left of a budget."""
    last = snap.attempt
    if last is None or last.verdict is None or RETRY_CLASS[last.verdict] not in COUNTED:
        return ()
    if last.desired_generation != snap.run.desired_generation:
        return ()
    budget = spent(snap.attempts, last.verdict, snap.job.policy, snap.groups)
    if not budget.exhausted:
        return ()
    finding = Finding(last.verdict, last.summary or "", ())
    return ask(snap, last.number, finding, *exhausted_words(snap, finding, budget))


def _ready(snap: Snapshot, group: HostGroup) -> Plan:
    """Every host is up: see that every agent is, then start the gang."""
    if group.refused is not None:
        return hosts.refused(snap, group, group.refused)
    lost = hosts.lost_while_idle(snap, group)
    if lost is not None:
        return Plan(lose_idle_group(snap, group, lost))
    waiting = [host for host in snap.hosts if not hosts.serves(host) or outdated(host, snap.job)]
    if waiting:
        return hosts.start_agents(snap, group, waiting)
    lost = hosts.lost_in_silence(snap, group)
    if lost is not None:
        return Plan(lose_idle_group(snap, group, lost))
    due = _next_start(snap)
    if due > snap.now:
        return Plan(look_again_at=due)
    return _start_attempt(snap, group)


def _next_start(snap: Snapshot) -> datetime:
    """When the wait after the last attempt is over; a person's resume does not wait."""
    last = snap.attempt
    if last is None or last.desired_generation != snap.run.desired_generation:
        return snap.now
    return (last.ended_at or snap.now) + backoff(snap.attempts, snap.job.policy, snap.groups)


def _start_attempt(snap: Snapshot, group: HostGroup) -> Plan:
    previous = snap.attempt
    coordinator = _coordinator(snap, previous)
    if previous is not None and coordinator is not None and coordinator == previous.coordinator:
        # The port was used by the gang before; the agent's next heartbeat brings another one.
        return Plan(look_again_at=snap.now + FRESH_PORT_WAIT)
    attempt = make_attempt(snap, group, previous, coordinator)
    if snap.run.state is RunState.PROVISIONING:
        return Plan((attempt, MoveRun(RunCause.ATTEMPT_MADE)))
    return Plan((attempt,))


def make_attempt(
    snap: Snapshot, group: HostGroup, previous: Attempt | None, coordinator: str | None
) -> MakeAttempt:
    newest = snap.newest
    cadence = chosen(snap.job.checkpoint, snap.attempts, snap.checkpoints, snap.now)
    return MakeAttempt(
        number=previous.number + 1 if previous else 1,
        revision=snap.run.revision,
        branch=snap.run.branch,
        group=group.name,
        processes=group.hosts,
        desired_generation=snap.run.desired_generation,
        resume_checkpoint=newest.id if newest else None,
        resumed_from_step=newest.step if newest else 0,
        coordinator=coordinator,
        save_seconds=cadence.seconds,
        save_why=cadence.why,
    )


def _coordinator(snap: Snapshot, previous: Attempt | None) -> str | None:
    """Where the gang meets; spares that stand by for what comes next have met already."""
    if len(snap.hosts) < 2:
        return None
    first = snap.hosts[0]
    same = previous is not None and previous.revision == snap.run.revision
    if same and first.standby and all(_stands_by(host, first) for host in snap.hosts):
        return first.standby
    return f"{first.address}:{first.free_port}"


def _stands_by(host: Host, first: Host) -> bool:
    """Whether its spare is ready to begin where that of host 0 is."""
    return host.standby_ready and host.standby == first.standby
