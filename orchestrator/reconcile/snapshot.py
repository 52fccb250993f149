"""Everything that one decision about one run sees, time included.

Must not import the store, a provider, the API, a clock, randomness or logging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.records import Attempt, Checkpoint, Host, HostGroup, Incident, Run, Trainer
from worker.protocol import JobSpec


@dataclass(frozen=True)
class Limits:
    """How many hosts may be held at once: of each provider, and by each owner; None: any number."""

    providers: Mapping[str, int] = field(default_factory=dict[str, int])
    per_owner: int | None = None

    def of(self, scope: str) -> int | None:
        """The limit of "provider:<name>" or "owner:<name>"."""
        kind, _, name = scope.partition(":")
        return self.providers.get(name) if kind == "provider" else self.per_owner


@dataclass(frozen=True)
class Admission:
    """Whether the run may ask for hosts now, and what it waits for if not.

    `never` says why it can not go at all under the limits as they are. `limits` are those that this
    was worked out under; the claims of the commit are held to them.
    """

    admitted: bool = True
    waits_for: str | None = None
    limits: Limits = Limits()
    never: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """`job` is the current revision's spec.

    `attempts` are in order of their number; `hosts` those of `group`; `trainers` those of the last
    attempt; `checkpoints` the usable ones of the run's branch, newest first; `incident` the open
    one. `listening_since` is when this control plane began to take reports, `host_lost_after` how
    long a host may be silent before its probes decide. `hours_held` and `cost` are what the run has
    used of hosts over its whole life, `price_per_hour` what a new group would cost. `admission` is
    whether it is the run's turn to ask for hosts.
    """

    now: datetime
    installation: str
    listening_since: datetime
    run: Run
    job: JobSpec
    attempts: tuple[Attempt, ...] = ()
    group: HostGroup | None = None
    hosts: tuple[Host, ...] = ()
    trainers: tuple[Trainer, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    incident: Incident | None = None
    host_lost_after: timedelta = timedelta(seconds=30)
    provider_hold: timedelta | None = None
    hours_held: float = 0.0
    cost: float = 0.0
    price_per_hour: float | None = None
    admission: Admission = Admission()

    @property
    def attempt(self) -> Attempt | None:
        """The last attempt, current or ended."""
        return self.attempts[-1] if self.attempts else None
