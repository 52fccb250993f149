"""A run's hosts: asking for them, starting their agents, giving them back.

Pure. Owns one host group at a time; a new one is asked for only when the old one is gone.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.reconcile import silence
from orchestrator.reconcile.budgets import lost_idle, wait_after
from orchestrator.reconcile.classify import NOTICE_VERDICTS
from orchestrator.reconcile.evidence import Finding, notice_of, taken_of
from orchestrator.reconcile.following import ask, lose_idle_group
from orchestrator.reconcile.plan import (
    AcquireHosts,
    Change,
    LaunchAgent,
    MakeGroup,
    MoveGroup,
    Plan,
    PlanLaunch,
    ReleaseHosts,
)
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.reconcile.versions import can_not_start, outdated
from orchestrator.records import Evidence, Host, HostGroup, HostRequest
from orchestrator.state import RETRY_CLASS, GroupCause, GroupState, RetryClass, Verdict
from worker.protocol import Victim

PROVIDER_RETRY = timedelta(seconds=1)
AGENT_START = timedelta(seconds=15)
WAITED = "Asked the provider for hosts, and waited."


# ---- asking and giving back --------------------------------------------------------------------


def ask_for_hosts(snap: Snapshot, *changes: Change) -> Plan:
    """Once it is the run's turn, and lost hosts are not asked for again too soon."""
    if snap.admission.never is not None:
        return Plan(_no_place(snap, snap.admission.never))
    due = _next_ask(snap)
    if due > snap.now:
        return Plan(look_again_at=due)
    if not snap.admission.admitted:
        return Plan()
    generation = snap.group.generation + 1 if snap.group else 1
    provider, request = snap.job.hosts.provider, _request(snap)
    name = f"lh-{snap.installation}-{snap.run.id}-g{generation}"
    group = MakeGroup(name, generation, provider, request, snap.price_per_hour)
    action = AcquireHosts(name, provider, request)
    return Plan((group, *changes), (action,))


def _next_ask(snap: Snapshot) -> datetime:
    """Hosts that were lost before any attempt ran on them are not asked for again at once."""
    last, wish = snap.group, snap.run.desired_generation
    if last is None or last.lost_in_wish != wish or last.released_at is None:
        return snap.now
    ends = lost_idle(snap.attempts, snap.groups, wish)
    return last.released_at + wait_after(ends, last.name, snap.job.policy)


def _no_place(snap: Snapshot, why: str) -> tuple[Change, ...]:
    """The limits have shrunk since the run was submitted."""
    never = "it can never have its hosts"
    return _no_hosts(snap, never, "the queue", why, "Asked for no hosts.")


def fits(snap: Snapshot, group: HostGroup) -> bool:
    """Whether the group is what the current revision asks for."""
    return group.provider == snap.job.hosts.provider and group.request == _request(snap)


def _request(snap: Snapshot) -> HostRequest:
    hosts = snap.job.hosts
    return HostRequest(hosts.count, hosts.devices, hosts.section)


def release(snap: Snapshot) -> Plan:
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


# ---- from asked for to ready -------------------------------------------------------------------


def requested(snap: Snapshot, group: HostGroup) -> Plan:
    if group.refused is not None:
        return refused(snap, group, group.refused)
    if group.exists:
        return Plan((MoveGroup(group.name, GroupCause.ASKED),))
    if _late(snap, group):
        return _not_given(snap, group, f"it took no order within {snap.provision_within}", WAITED)
    return _ask_again(snap, group)


def _ask_again(snap: Snapshot, group: HostGroup) -> Plan:
    acquire = AcquireHosts(group.name, group.provider, group.request)
    return Plan((), (acquire,), snap.now + PROVIDER_RETRY)


def creating(snap: Snapshot, group: HostGroup) -> Plan:
    if group.refused is not None:
        return refused(snap, group, group.refused)
    # The cloud may take hosts that were never all up. One without capacity has not lost any.
    lost = lost_while_idle(snap, group) if group.again is None else None
    if lost is not None:
        return Plan(lose_idle_group(snap, group, lost))
    if group.up:
        return Plan((MoveGroup(group.name, GroupCause.HOSTS_UP),))
    if _late(snap, group):
        return _not_given(snap, group, _not_up(snap, group), WAITED)
    if group.again is not None:
        return _ask_again(snap, group)
    return Plan(look_again_at=snap.now + PROVIDER_RETRY)


def _not_up(snap: Snapshot, group: HostGroup) -> str:
    last = "" if group.again is None else f"; at last: {group.again}"
    return f"not all were up within {snap.provision_within}{last}"


def _late(snap: Snapshot, group: HostGroup) -> bool:
    """A control plane that was away could not see them come up."""
    asked = max(group.created_at, snap.hearing_since)
    return snap.now - asked > snap.provision_within


def refused(snap: Snapshot, group: HostGroup, words: str) -> Plan:
    return _not_given(snap, group, words, "Asked the provider for hosts; it refused.")


def _not_given(snap: Snapshot, group: HostGroup, words: str, done: str) -> Plan:
    return Plan(_no_hosts(snap, "no hosts given", f"provider {group.provider}", words, done))


def _no_hosts(
    snap: Snapshot, summary: str, source: str, words: str, done: str
) -> tuple[Change, ...]:
    """Only a person can help."""
    seen = (Evidence(snap.now, source, words),)
    finding = Finding(Verdict.PROVISION_FAILED, f"{summary}: {words}", seen)
    number = snap.attempt.number if snap.attempt else 0
    return ask(snap, number, finding, done)


def lost_while_idle(snap: Snapshot, group: HostGroup) -> Finding | None:
    """Why nothing must be started on these hosts, None where they are well."""
    if group.exists is False:
        return _no_trace(snap, group)
    if group.taken is not None:
        seen = taken_of(group, snap.now)
        return _told(seen, group.taken)
    noticed = next((host for host in snap.hosts if host.notice is not None), None)
    return None if noticed is None else _told(notice_of(noticed), noticed.notice)


def lost_in_silence(snap: Snapshot, group: HostGroup) -> Finding | None:
    """Why one of the hosts counts as lost although its provider says nothing of the kind."""
    found = silence.given_up_idle(snap, group)
    if found is None:
        return None
    host, why = found
    seen = (Evidence(snap.now, f"host {host.index}", why),)
    return Finding(Verdict.HOST_LOST, f"host {host.index} is lost: {why}", seen)


def _told(seen: Evidence, notice: str | None) -> Finding:
    verdict = NOTICE_VERDICTS.get(notice or "", Verdict.PREEMPTED)
    assert RETRY_CLASS[verdict] is RetryClass.HOST_BUDGET
    return Finding(verdict, f"{seen.source}: {seen.text}", (seen,))


def _no_trace(snap: Snapshot, group: HostGroup) -> Finding:
    words = f"the provider has no trace of host group {group.name}"
    seen = (Evidence(snap.now, f"provider {group.provider}", words),)
    return Finding(Verdict.HOST_LOST, words, seen)


# ---- agents ------------------------------------------------------------------------------------


def serves(host: Host) -> bool:
    return host.registered_at is not None and host.agent_alive is not False


def start_agents(snap: Snapshot, group: HostGroup, waiting: list[Host]) -> Plan:
    limit = timedelta(seconds=snap.job.policy.start_seconds)
    since = {host.index: _silent_since(snap, group, host) for host in waiting}
    silent = [index for index, at in since.items() if snap.now - at > limit]
    if silent:
        names = ", ".join(map(str, silent))
        return refused(snap, group, f"no agent reported from host {names} within {limit}")
    return launches(snap, group, waiting)


def _silent_since(snap: Snapshot, group: HostGroup, host: Host) -> datetime:
    """From when on this control plane could have heard of the host and did not.

    The run may be in its state for hours, its hosts may have been waited for in a cloud's queue,
    and this process may have been away for days.
    """
    up = group.ready_at or group.created_at
    since = max(snap.run.state_since, up, snap.hearing_since)
    if host.last_seen_at is None or outdated(host, snap.job):
        return since
    return max(since, host.last_seen_at)


def launches(snap: Snapshot, group: HostGroup, hosts: list[Host]) -> Plan:
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
        replaced = outdated(host, snap.job) and snap.now - host.launched_at > AGENT_START
        return host.agent_alive is False or replaced
    return snap.now - host.launched_at > AGENT_START


def and_relaunch(snap: Snapshot, plan: Plan) -> Plan:
    """Adds new agents for those that died, so that they are back by the time the gang is down.

    One that was started and never reported is replaced too: it may be stuck. Nothing is started on
    hosts that are about to go.
    """
    group = snap.group
    if group is None or group.state is not GroupState.READY:
        return plan
    drilled = snap.current is not None and snap.current.drill is Victim.HOST
    if drilled or lost_while_idle(snap, group) is not None:
        return plan
    away = [host for host in snap.hosts if not serves(host)]
    if snap.current is not None:
        away += [host for host in can_not_start(snap, snap.current) if host not in away]
    more = launches(snap, group, away)
    return replace(
        plan,
        changes=plan.changes + more.changes,
        actions=plan.actions + more.actions,
        look_again_at=more.look_again_at if away else plan.look_again_at,
    )
