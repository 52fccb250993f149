"""The decision itself: from a snapshot of one run to a plan.

Pure: no IO, no clock, no randomness. Each function settles one situation and answers a plan; the
next snapshot shows what came of it. Level-triggered: deciding twice on the same facts is harmless.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.reconcile.plan import (
    AcquireHosts,
    BuryTrainer,
    Change,
    CloseIncident,
    EndAttempt,
    LaunchAgent,
    MakeAttempt,
    MakeGroup,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    OpenIncident,
    Plan,
    PlanLaunch,
    ReleaseHosts,
)
from orchestrator.reconcile.policy import (
    CAUSE_WAIT,
    Finding,
    backoff,
    cause,
    classify,
    how_it_ended,
    spent,
)
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.reconcile.versions import can_not_start, outdated
from orchestrator.records import Attempt, Checkpoint, Evidence, Host, HostGroup, Trainer
from orchestrator.state import (
    RETRY_CLASS,
    AttemptCause,
    AttemptState,
    Desired,
    GroupCause,
    GroupState,
    RetryClass,
    RunCause,
    RunState,
    Verdict,
)

PROVIDER_RETRY = timedelta(seconds=1)
AGENT_START = timedelta(seconds=15)
FRESH_PORT_WAIT = timedelta(milliseconds=200)
LIVE_GROUPS = frozenset({GroupState.REQUESTED, GroupState.CREATING, GroupState.READY})


def reconcile(snap: Snapshot) -> Plan:
    """What to do next about one run."""
    match snap.run.state:
        case RunState.SUCCEEDED | RunState.CANCELLED:
            return _release(snap)
        case RunState.PAUSED | RunState.FAILED:
            return _resting(snap)
        case RunState.QUEUED:
            return _queued(snap)
        case _:
            attempt = snap.attempt
            if attempt is not None and attempt.state is not AttemptState.ENDED:
                return _watch(snap, attempt)
            return _between_attempts(snap)


# ---- nothing runs ------------------------------------------------------------------------------


def _resting(snap: Snapshot) -> Plan:
    """A paused or failed run: let go of what it holds, and move on only by a newer wish."""
    run = snap.run
    if run.state is RunState.PAUSED and run.desired is Desired.CANCEL:
        return Plan(_cancelled(snap, "cancelled"))
    if run.desired is Desired.RUN and run.desired_generation > run.settled_generation:
        return Plan((MoveRun(RunCause.RESUMED, "resumed"),))
    return _release(snap)


def _cancelled(snap: Snapshot, words: str) -> tuple[Change, ...]:
    """Nobody is needed for an incident of a run that is over."""
    move = MoveRun(RunCause.CANCELLED, words, settle=True)
    return (*_close_open_incident(snap, None), move)


def _queued(snap: Snapshot) -> Plan:
    match snap.run.desired:
        case Desired.CANCEL:
            return Plan(_cancelled(snap, "cancelled before it started"))
        case Desired.PAUSE:
            return Plan((MoveRun(RunCause.PAUSED, "paused before it started", settle=True),))
        case Desired.RUN:
            pass
    if snap.group is not None and snap.group.state is not GroupState.GONE:
        return _release(snap)
    if snap.admission.never is not None:
        return Plan(_no_place(snap, snap.admission.never))
    return _ask_for_hosts(snap, MoveRun(RunCause.ADMITTED))


def _no_place(snap: Snapshot, why: str) -> tuple[Change, ...]:
    """The limits have shrunk since the run was submitted: only a person can help."""
    seen = (Evidence(snap.now, "the queue", why),)
    finding = Finding(Verdict.PROVISION_FAILED, f"it can never have its hosts: {why}", seen)
    number = snap.attempt.number if snap.attempt else 0
    return _ask_a_person(snap, number, finding, "Asked for no hosts.")


def _ask_for_hosts(snap: Snapshot, *changes: Change) -> Plan:
    """Once it is the run's turn; the loop wakes it then."""
    if not snap.admission.admitted:
        return Plan()
    generation = snap.group.generation + 1 if snap.group else 1
    hosts = snap.job.hosts
    name = f"lh-{snap.installation}-{snap.run.id}-g{generation}"
    group = MakeGroup(name, generation, hosts.provider, hosts.count, hosts.devices)
    action = AcquireHosts(name, hosts.provider, hosts.count, hosts.devices)
    return Plan((group, *changes), (action,))


def _release(snap: Snapshot) -> Plan:
    """Gives the group back, step by step, until the provider has nothing left of it."""
    group = snap.group
    if group is None or group.state is GroupState.GONE:
        return Plan()
    if group.state is not GroupState.RELEASING:
        move = MoveGroup(group.name, GroupCause.NOT_WANTED)
        return Plan((move,), (ReleaseHosts(group.name, group.provider),))
    if group.exists is False:
        return Plan((MoveGroup(group.name, GroupCause.RELEASED),))
    again = snap.now + PROVIDER_RETRY
    return Plan((), (ReleaseHosts(group.name, group.provider),), again)


# ---- between attempts --------------------------------------------------------------------------


def _between_attempts(snap: Snapshot) -> Plan:
    """The run is wanted, or was until now, and no attempt is current."""
    run = snap.run
    if run.state is RunState.STOPPING:
        return _stopped(snap)
    if run.desired is not Desired.RUN:
        return Plan((MoveRun(RunCause.STOP_ASKED, _wish_words(run.desired)),))
    group = snap.group
    if group is None or group.state is GroupState.GONE:
        if snap.admission.never is not None:
            return Plan(_no_place(snap, snap.admission.never))
        return _ask_for_hosts(snap)
    match group.state:
        case GroupState.REQUESTED:
            return _requested(snap, group)
        case GroupState.CREATING:
            return _creating(snap, group)
        case GroupState.READY:
            return _ready(snap, group)
        case GroupState.RELEASING:
            return _release(snap)


def _stopped(snap: Snapshot) -> Plan:
    """Settles the wish that was obeyed; a newer wish to run is left for the next round."""
    if snap.run.desired is Desired.CANCEL:
        return Plan(_cancelled(snap, "cancelled"))
    settle = snap.run.desired is Desired.PAUSE
    return Plan((MoveRun(RunCause.PAUSED, "paused by a person", settle=settle),))


def _requested(snap: Snapshot, group: HostGroup) -> Plan:
    if group.refused is not None:
        return _refused(snap, group, group.refused)
    if group.exists:
        return Plan((MoveGroup(group.name, GroupCause.ASKED),))
    ask = AcquireHosts(group.name, group.provider, group.hosts, group.devices)
    return Plan((), (ask,), snap.now + PROVIDER_RETRY)


def _creating(snap: Snapshot, group: HostGroup) -> Plan:
    if group.refused is not None:
        return _refused(snap, group, group.refused)
    if group.exists is False:
        return Plan((MoveGroup(group.name, GroupCause.HOSTS_LOST, "the provider has no trace"),))
    if group.up:
        return Plan((MoveGroup(group.name, GroupCause.HOSTS_UP),))
    return Plan(look_again_at=snap.now + PROVIDER_RETRY)


def _refused(snap: Snapshot, group: HostGroup, words: str) -> Plan:
    seen = (Evidence(snap.now, f"provider {group.provider}", words),)
    finding = Finding(Verdict.PROVISION_FAILED, f"no hosts given: {words}", seen)
    number = snap.attempt.number if snap.attempt else 0
    return Plan(_ask_a_person(snap, number, finding, "Asked the provider for hosts; it refused."))


def _ready(snap: Snapshot, group: HostGroup) -> Plan:
    """Every host is up: see that every agent is, then start the gang."""
    if group.exists is False:
        return Plan((MoveGroup(group.name, GroupCause.HOSTS_LOST, "the hosts are gone"),))
    waiting = [host for host in snap.hosts if not _serves(host) or outdated(host)]
    if waiting:
        return _start_agents(snap, group, waiting)
    due = _next_start(snap)
    if due > snap.now:
        return Plan(look_again_at=due)
    return _start_attempt(snap, group)


def _next_start(snap: Snapshot) -> datetime:
    """When the wait after the last attempt is over; a person's resume does not wait."""
    last = snap.attempt
    if last is None or last.desired_generation != snap.run.desired_generation:
        return snap.now
    return (last.ended_at or snap.now) + backoff(snap.attempts, snap.job.policy)


def _serves(host: Host) -> bool:
    return host.registered_at is not None and host.agent_alive is not False


def _start_agents(snap: Snapshot, group: HostGroup, waiting: list[Host]) -> Plan:
    limit = timedelta(seconds=snap.job.policy.start_seconds)
    silent = [host for host in waiting if snap.now - _silent_since(snap, group, host) > limit]
    if silent:
        names = ", ".join(str(host.index) for host in silent)
        return _refused(snap, group, f"no agent reported from host {names} within {limit}")
    return _launches(snap, group, waiting)


def _silent_since(snap: Snapshot, group: HostGroup, host: Host) -> datetime:
    """From when on this control plane could have heard of the host and did not.

    The run may be in its state for hours, and this process may have been away for days.
    """
    since = max(snap.run.state_since, group.created_at, snap.listening_since)
    if host.last_seen_at is None or outdated(host):
        return since
    return max(since, host.last_seen_at)


def _launches(snap: Snapshot, group: HostGroup, hosts: list[Host]) -> Plan:
    """Starts the agents that are due; one that was started a moment ago is given time."""
    due = [host for host in hosts if _launch_due(snap, host)]
    changes = tuple(PlanLaunch(group.name, host.index) for host in due)
    actions = tuple(LaunchAgent(group.name, group.provider, host.index) for host in due)
    return Plan(changes, actions, snap.now + PROVIDER_RETRY)


def _launch_due(snap: Snapshot, host: Host) -> bool:
    """An agent that died after it had reported is replaced at once, an outdated one too."""
    if host.launched_at is None:
        return True
    if host.registered_at is not None:
        replaced = outdated(host) and snap.now - host.launched_at > AGENT_START
        return host.agent_alive is False or replaced
    return snap.now - host.launched_at > AGENT_START


def _start_attempt(snap: Snapshot, group: HostGroup) -> Plan:
    previous = snap.attempt
    coordinator = _coordinator(snap)
    if previous is not None and coordinator is not None and coordinator == previous.coordinator:
        # The port was used by the gang before; the agent's next heartbeat brings another one.
        return Plan(look_again_at=snap.now + FRESH_PORT_WAIT)
    newest = _newest(snap)
    attempt = MakeAttempt(
        number=previous.number + 1 if previous else 1,
        revision=snap.run.revision,
        branch=snap.run.branch,
        group=group.name,
        processes=group.hosts,
        desired_generation=snap.run.desired_generation,
        resume_checkpoint=newest.id if newest else None,
        resumed_from_step=newest.step if newest else 0,
        coordinator=coordinator,
    )
    if snap.run.state is RunState.PROVISIONING:
        return Plan((attempt, MoveRun(RunCause.ATTEMPT_MADE)))
    return Plan((attempt,))


def _coordinator(snap: Snapshot) -> str | None:
    if len(snap.hosts) < 2:
        return None
    first = snap.hosts[0]
    return f"{first.address}:{first.free_port}"


def _newest(snap: Snapshot) -> Checkpoint | None:
    return snap.checkpoints[0] if snap.checkpoints else None


# ---- an attempt is current ---------------------------------------------------------------------


def _watch(snap: Snapshot, attempt: Attempt) -> Plan:
    """Follows the gang: what started, what stepped, who is dead, what is wished."""
    buried = _burials(snap, attempt)
    if buried:
        return _and_relaunch(snap, Plan(buried))
    trainers = _gang(snap, attempt)
    if all(trainer.exited for trainer in trainers):
        return _gang_ended(snap, attempt, trainers)
    # What it did comes before what it is asked for: nothing but an end follows a stop.
    changes = (*_attempt_moves(attempt), *_stop_asked(snap, attempt), *_run_moves(snap, attempt))
    return _and_relaunch(snap, Plan(changes))


def _gang(snap: Snapshot, attempt: Attempt) -> list[Trainer]:
    """One record per rank, also for those that nobody told of yet."""
    told = {trainer.rank: trainer for trainer in snap.trainers if trainer.attempt == attempt.number}
    blank = [Trainer(attempt.number, rank) for rank in range(attempt.processes)]
    return [told.get(trainer.rank, trainer) for trainer in blank]


def _burials(snap: Snapshot, attempt: Attempt) -> tuple[Change, ...]:
    """Trainers that died with their agent: the process is seen to be gone, its exit never was."""
    hosts = {host.index: host for host in snap.hosts}
    gone = snap.group is not None and snap.group.exists is False
    return tuple(
        BuryTrainer(attempt.number, trainer.rank, why)
        for trainer in _gang(snap, attempt)
        if not trainer.exited
        and (why := _why_dead(hosts.get(trainer.rank), attempt, gone)) is not None
    )


def _why_dead(host: Host | None, attempt: Attempt, group_gone: bool) -> str | None:
    if group_gone:
        return "its host is gone: the provider has no trace of the group"
    if host is None:
        return None
    if host.launched_at is None:
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


def _and_relaunch(snap: Snapshot, plan: Plan) -> Plan:
    """Adds new agents for those that died, so that they are back by the time the gang is down.

    One that was started and never reported is replaced too: it may be stuck.
    """
    group = snap.group
    if group is None or group.state is not GroupState.READY:
        return plan
    away = [host for host in snap.hosts if not _serves(host)]
    if snap.attempt is not None:
        away += [host for host in can_not_start(snap, snap.attempt) if host not in away]
    launches = _launches(snap, group, away)
    return replace(
        plan,
        changes=plan.changes + launches.changes,
        actions=plan.actions + launches.actions,
        look_again_at=launches.look_again_at if away else plan.look_again_at,
    )


def _stop_asked(snap: Snapshot, attempt: Attempt) -> tuple[Change, ...]:
    if snap.run.desired is Desired.RUN or attempt.state is AttemptState.DRAINING:
        return ()
    changes: list[Change] = [MoveAttempt(attempt.number, AttemptCause.STOP_ASKED)]
    if snap.run.state is not RunState.STOPPING:
        changes.append(MoveRun(RunCause.STOP_ASKED, _wish_words(snap.run.desired)))
    return tuple(changes)


def _wish_words(wish: Desired) -> str:
    return "ending it for the cancel" if wish is Desired.CANCEL else "saving before the pause"


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
    if snap.run.state in (RunState.STARTING, RunState.RECOVERING) and (
        snap.run.desired is Desired.RUN
    ):
        changes.append(MoveRun(RunCause.FIRST_STEP))
    if snap.incident is not None and snap.incident.attempt < attempt.number:
        changes.append(CloseIncident(snap.incident.number, attempt.number))
    return tuple(changes)


# ---- the gang is down --------------------------------------------------------------------------


def _gang_ended(snap: Snapshot, attempt: Attempt, trainers: list[Trainer]) -> Plan:
    newest = _newest(snap)
    if newest is not None and newest.step >= snap.job.steps and _all_left_well(trainers):
        return Plan(_completed(snap, attempt, newest))
    if attempt.state is AttemptState.DRAINING:
        return Plan(_obeyed(snap, attempt, trainers, newest))
    if cause(trainers) is None and not _all_left_well(trainers):
        latest = max(trainer.exited_at for trainer in trainers if trainer.exited_at is not None)
        if snap.now < latest + CAUSE_WAIT and len(trainers) > 1:
            return Plan(look_again_at=latest + CAUSE_WAIT)
    finding = classify(trainers, f"step {snap.job.steps} was never accepted")
    return Plan(_lost(snap, attempt, finding))


def _all_left_well(trainers: list[Trainer]) -> bool:
    return all(trainer.exit_code == 0 for trainer in trainers)


def _completed(snap: Snapshot, attempt: Attempt, last: Checkpoint) -> tuple[Change, ...]:
    summary = f"step {last.step} was trained and its checkpoint accepted"
    seen = (Evidence(last.accepted_at or snap.now, "checkpoint ledger", f"{last.id} accepted"),)
    end = EndAttempt(attempt.number, Verdict.COMPLETED, summary, seen)
    closing = _close_open_incident(snap, attempt.number)
    return (end, *closing, MoveRun(RunCause.COMPLETED, summary, settle=True))


def _obeyed(
    snap: Snapshot, attempt: Attempt, trainers: list[Trainer], newest: Checkpoint | None
) -> tuple[Change, ...]:
    """The gang was asked to leave and has left; the run itself settles in the next round."""
    cancelled = snap.run.desired is Desired.CANCEL
    verdict = Verdict.CANCELLED if cancelled else Verdict.PAUSED
    drained = all(trainer.drained for trainer in trainers)
    kept = f"step {newest.step} is the newest accepted" if newest else "no step was accepted yet"
    summary = f"asked to stop; {'saved and left' if drained else 'left without a new save'}; {kept}"
    seen = tuple(
        Evidence(
            t.exited_at or snap.now, f"agent of host {t.rank}", f"the trainer {how_it_ended(t)}"
        )
        for t in trainers
    )
    changes: list[Change] = [EndAttempt(attempt.number, verdict, summary, seen)]
    if snap.run.state is not RunState.STOPPING:
        changes.append(MoveRun(RunCause.STOP_ASKED, summary))
    return tuple(changes)


def _lost(snap: Snapshot, attempt: Attempt, finding: Finding) -> tuple[Change, ...]:
    """A verdict that cost time: what follows is its class's, within its budget."""
    end = EndAttempt(attempt.number, finding.verdict, finding.summary, finding.evidence)
    kind = RETRY_CLASS[finding.verdict]
    if kind is RetryClass.FAIL:
        incident = _incident(
            snap, attempt.number, finding, ("Stopped: a retry can not help.",), True
        )
        return (end, *incident, MoveRun(RunCause.INVALID, finding.summary, settle=True))
    if kind is RetryClass.ASK:
        asked = _ask_a_person(snap, attempt.number, finding, "Kept every checkpoint.")
        return (end, *asked)
    ended = replace(attempt, verdict=finding.verdict)
    budget = spent((*snap.attempts[:-1], ended), finding.verdict, snap.job.policy)
    if budget.exhausted:
        tried = f"Restarted {budget.allowed} times in a row without a new accepted step."
        return (end, *_ask_a_person(snap, attempt.number, finding, tried))
    done = (_what_follows(snap, budget.ends, budget.allowed),)
    incident = _incident(snap, attempt.number, finding, done, False)
    move = () if _already_recovering(snap) else (MoveRun(RunCause.ATTEMPT_LOST, finding.summary),)
    return (end, *incident, *move)


def _already_recovering(snap: Snapshot) -> bool:
    return snap.run.state in (RunState.RECOVERING, RunState.STOPPING)


def _what_follows(snap: Snapshot, ends: int, allowed: int) -> str:
    newest = _newest(snap)
    start = f"from the checkpoint at step {newest.step}" if newest else "from the start"
    return f"Restarting on the same hosts {start} (failure {ends} of {allowed} in a row)."


def _ask_a_person(snap: Snapshot, attempt: int, finding: Finding, done: str) -> tuple[Change, ...]:
    incident = _incident(snap, attempt, finding, (done, "Paused; hosts are given back."), True)
    return (*incident, MoveRun(RunCause.GAVE_UP, finding.summary, settle=True))


def _incident(
    snap: Snapshot, attempt: int, finding: Finding, done: tuple[str, ...], needs_person: bool
) -> tuple[Change, ...]:
    opened = OpenIncident(
        attempt, finding.verdict, finding.summary, finding.evidence, done, needs_person
    )
    return (*_close_open_incident(snap, None), opened)


def _close_open_incident(snap: Snapshot, by_attempt: int | None) -> tuple[Change, ...]:
    return (CloseIncident(snap.incident.number, by_attempt),) if snap.incident else ()
