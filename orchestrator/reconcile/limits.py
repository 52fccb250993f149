"""The limits of the spec on hours and cost over a run's whole life, with the arithmetic in words.

Pure. The sums come with the snapshot, from the host groups' rows.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.reconcile.evidence import Finding
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Evidence
from orchestrator.state import GroupState, Verdict

SLACK_HOURS = 1e-9


def over(snap: Snapshot) -> Finding | None:
    """Which limit is reached, None while none is."""
    policy = snap.job.policy
    held = len(snap.groups)
    groups = "1 host group" if held == 1 else f"{held} host groups"
    if policy.max_hours is not None and snap.hours_held >= policy.max_hours - SLACK_HOURS:
        words = (
            f"policy.max_hours is {policy.max_hours:g}: the run has held hosts for"
            f" {snap.hours_held:.2f} hours in {groups}"
        )
        return _finding(snap, words)
    if policy.max_cost is not None and snap.cost >= policy.max_cost - SLACK_HOURS:
        words = (
            f"policy.max_cost is {policy.max_cost:g}: {snap.hours_held:.2f} hours of hosts in"
            f" {groups} have cost {snap.cost:.2f}"
        )
        return _finding(snap, words)
    return None


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
