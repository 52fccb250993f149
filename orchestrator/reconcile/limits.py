"""The limits of the spec on hours and cost over a run's whole life, with the arithmetic in words.

Pure. The sums follow from the host groups' rows, and come with the snapshot.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.reconcile.evidence import Finding
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Evidence, HostGroup
from orchestrator.state import GroupState, Verdict
from worker.protocol import PolicySpec

SLACK_HOURS = 1e-9


@dataclass(frozen=True)
class Used:
    """What the run has used of hosts over its whole life, at prices in the service's currency."""

    groups: int
    hours: float
    cost: float


def used(groups: Collection[HostGroup], now: datetime) -> Used:
    """Hours that these host groups were held, from ready until gone, and what they cost."""
    hours, cost = 0.0, 0.0
    for group in groups:
        if group.ready_at is not None:
            held = max(0.0, ((group.released_at or now) - group.ready_at) / timedelta(hours=1))
            hours += held
            cost += held * (group.price_per_hour or 0.0)
    return Used(len(groups), hours, cost)


@dataclass(frozen=True)
class Reached:
    """A limit that is reached: the field of the policy that sets it, and the arithmetic."""

    field: str
    words: str


def reached(policy: PolicySpec, so_far: Used) -> Reached | None:
    """Which limit is reached, None while none is."""
    groups = "1 host group" if so_far.groups == 1 else f"{so_far.groups} host groups"
    if policy.max_hours is not None and so_far.hours >= policy.max_hours - SLACK_HOURS:
        words = (
            f"policy.max_hours is {policy.max_hours:g}: the run has held hosts for"
            f" {so_far.hours:.2f} hours in {groups}"
        )
        return Reached("policy.max_hours", words)
    if policy.max_cost is not None and so_far.cost >= policy.max_cost - SLACK_HOURS:
        words = (
            f"policy.max_cost is {policy.max_cost:g}: {so_far.hours:.2f} hours of hosts in"
            f" {groups} have cost {so_far.cost:.2f}"
        )
        return Reached("policy.max_cost", words)
    return None


def over(snap: Snapshot) -> Finding | None:
    """As `reached`, as the end of an attempt or of the wait for one."""
    so_far = Used(len(snap.groups), snap.hours_held, snap.cost)
    found = reached(snap.job.policy, so_far)
    return None if found is None else _finding(snap, found.words)


def _finding(snap: Snapshot, words: str) -> Finding:
    seen = (Evidence(snap.now, "host groups", words),)
    return Finding(Verdict.OVER_LIMIT, words, seen)


def due(snap: Snapshot) -> datetime | None:
    """When the next limit is reached if the hosts are kept; None where none comes nearer."""
    group = snap.group
    if group is None or group.state is not GroupState.READY:
        return None
    policy, hours = snap.job.policy, list[float]()
    if policy.max_hours is not None:
        hours.append(policy.max_hours - snap.hours_held)
    if policy.max_cost is not None and group.price_per_hour:
        hours.append((policy.max_cost - snap.cost) / group.price_per_hour)
    left = [hour for hour in hours if hour > 0]
    return snap.now + timedelta(hours=min(left)) if left else None
