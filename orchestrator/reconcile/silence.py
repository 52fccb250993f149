"""Hosts that are not heard of: `unreachable` first, and lost only by elapsed time and probes.

Pure. Invariant 11: a control plane that was itself away or asleep hears nothing, so only the time
counts in which it could have heard; and a host that its provider sees alive is never given up.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.reconcile.plan import Change, MarkHost
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Host, HostGroup

# A provider that can not tell may be as cut off as the host: it gets this many times the deadline.
CAN_NOT_TELL = 10


def heard_until(snap: Snapshot, host: Host, since: datetime) -> datetime:
    """From when on the host could have been heard of and was not; `since` where it never was.

    What was stamped far in the future was stamped before the clock was set back, and that step
    began the hearing anew. Clocks of replicas differ by less than that.
    """
    seen = host.last_seen_at or since
    if seen > snap.now + snap.host_lost_after:
        return snap.hearing_since
    return max(seen, snap.hearing_since)


def silent(snap: Snapshot, host: Host, attempt: Attempt) -> timedelta:
    return snap.now - heard_until(snap, host, attempt.created_at)


def given_up(snap: Snapshot, host: Host, attempt: Attempt) -> str | None:
    """Why the host counts as lost, None while it does not."""
    return _given_up(snap, host, attempt.created_at)


def given_up_idle(snap: Snapshot, group: HostGroup) -> tuple[Host, str] | None:
    """The first host that counts as lost while no attempt is current, and why.

    One whose agent is known to be dead is given another agent instead.
    """
    since = group.ready_at or group.created_at
    for host in snap.hosts:
        why = _given_up(snap, host, since) if host.agent_alive is None else None
        if why is not None:
            return host, why
    return None


def _given_up(snap: Snapshot, host: Host, since: datetime) -> str | None:
    taken = snap.group is not None and snap.group.taken is not None
    if host.trainer_alive or (host.agent_alive and not taken):
        return None
    heard = heard_until(snap, host, since)
    for_long = snap.now - heard
    if host.agent_alive is None and not taken:
        blind = snap.now - _blind_since(snap, host, heard)
        if blind <= CAN_NOT_TELL * snap.host_lost_after:
            return None
        return (
            f"nothing was heard of it for {_seconds(for_long)}, and its provider could not tell"
            f" for {_seconds(blind)}"
        )
    if for_long <= snap.host_lost_after:
        return None
    how = "its provider says that it was taken" if taken else "its probes say that no agent lives"
    return f"nothing was heard of it for {_seconds(for_long)}, and {how}"


def _blind_since(snap: Snapshot, host: Host, heard: datetime) -> datetime:
    """From when on its provider was asked whether it lives and could not tell.

    What lies in the future is from before the clock was set back.
    """
    times = (snap.probing_since, host.seen_alive_at)
    return max((heard, *(at for at in times if at is not None and at <= snap.now)))


def marks(snap: Snapshot, attempt: Attempt) -> tuple[Change, ...]:
    """One line of the timeline when a host falls silent, and one when it is heard of again."""
    found: list[Change] = []
    for host in snap.hosts[: attempt.processes]:
        for_long = silent(snap, host, attempt)
        if host.unreachable_at is None and for_long > snap.host_lost_after:
            words = (
                f"nothing was heard of it for {_seconds(for_long)};"
                f" {_probe_words(host)}; the attempt goes on"
            )
            found.append(MarkHost(host.group, host.index, True, words))
        elif host.unreachable_at is not None and _heard_again(snap, host, host.unreachable_at):
            found.append(MarkHost(host.group, host.index, False, "it is heard of again"))
    return tuple(found)


def due(snap: Snapshot, attempt: Attempt) -> datetime | None:
    """When the silence of a host will next mean something."""
    times: list[datetime] = []
    for host in snap.hosts[: attempt.processes]:
        heard = heard_until(snap, host, attempt.created_at)
        blind = _blind_since(snap, host, heard)
        times += (heard + snap.host_lost_after, blind + CAN_NOT_TELL * snap.host_lost_after)
    later = (at + timedelta(milliseconds=1) for at in times)
    return min((at for at in later if at > snap.now), default=None)


def _heard_again(snap: Snapshot, host: Host, marked_at: datetime) -> bool:
    """A mark or a sign of life that lies in the future is from before the clock was set back."""
    seen = host.last_seen_at
    if seen is None or seen > snap.now + snap.host_lost_after:
        return False
    return seen > (snap.hearing_since if marked_at > snap.now else marked_at)


def _probe_words(host: Host) -> str:
    match host.agent_alive:
        case True:
            return "its provider says that its agent lives"
        case False:
            return "its provider says that no agent lives there"
        case None:
            return "its provider can not tell"


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"
