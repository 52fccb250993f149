"""What each run holds of hosts, metered from outside: hours, cost, and how long a pause may hold.

Owns the arithmetic of the limits and the holds. It reads the control plane's clock at the moment
that a move is committed, and asks no row for a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tests.scenarios.cloud import PRICE
from worker.protocol import JobSpec

SLACK_HOURS = 1e-6


@dataclass
class Held:
    """A group of hosts from when all of them were up until nothing of it was left."""

    run_id: str
    hosts: int
    ready: datetime | None = None
    gone: datetime | None = None


class Meter:
    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self._held: dict[str, Held] = {}
        self._paused: dict[str, datetime] = {}

    def group(self, name: str, run_id: str, hosts: int, state: str, now: datetime) -> str | None:
        """Notes the state of a group; answers the one before."""
        before = self.states.get(name)
        self.states[name] = state
        held = self._held.setdefault(name, Held(run_id, hosts))
        if state == "ready" != before:
            held.ready = now
        if state == "gone" != before:
            held.gone = now
        return before

    def run(self, run_id: str, state: str, now: datetime) -> None:
        if state == "paused":
            self._paused.setdefault(run_id, now)
        else:
            self._paused.pop(run_id, None)

    # ---- limits ----------------------------------------------------------------------------------

    def reached(self, run_id: str, job: JobSpec, at: datetime) -> str | None:
        """The limit of the spec that is surely reached, None where none is."""
        return self._beyond(run_id, job, at, SLACK_HOURS)

    def near(self, run_id: str, job: JobSpec, at: datetime) -> str | None:
        """As `reached`, and also where it is a hair's breadth away."""
        return self._beyond(run_id, job, at, -SLACK_HOURS)

    def _beyond(self, run_id: str, job: JobSpec, at: datetime, slack: float) -> str | None:
        hours, cost = self.used(run_id, at)
        policy = job.policy
        if policy.max_hours is not None and hours > policy.max_hours + slack:
            return "max_hours reached"
        if policy.max_cost is not None and cost > policy.max_cost + slack:
            return "max_cost reached"
        return None

    def used(self, run_id: str, at: datetime) -> tuple[float, float]:
        """Hours and cost until `at`."""
        hours = cost = 0.0
        for held in self._held.values():
            if held.run_id == run_id and held.ready is not None:
                span = ((held.gone or at) - held.ready) / timedelta(hours=1)
                hours += max(0.0, span)
                cost += max(0.0, span) * PRICE * held.hosts
        return hours, cost

    # ---- holds -----------------------------------------------------------------------------------

    def hold_due(
        self, run_id: str, job: JobSpec, provider_hold: float | None, at: datetime
    ) -> bool:
        """Whether a paused run must still have its hosts, as far as its hold goes."""
        wanted = job.policy.hold_seconds
        seconds = wanted if wanted is not None else provider_hold or 0.0
        return at < self._paused.get(run_id, at) + timedelta(seconds=seconds)
