"""Everything that one decision about one run sees, time included.

Must not import the store, a provider, the API, a clock, randomness or logging.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.records import Attempt, Checkpoint, Host, HostGroup, Incident, Run, Trainer
from worker.protocol import JobSpec


@dataclass(frozen=True)
class Snapshot:
    """`job` is the current revision's spec.

    `attempts` are in order of their number; `hosts` those of `group`; `trainers` those of the last
    attempt; `checkpoints` the usable ones of the run's branch, newest first; `incident` the open
    one. `listening_since` is when this control plane began to take reports, `host_lost_after` how
    long a host may be silent before its probes decide. `hours_held` and `cost` are what the run has
    used of hosts over its whole life, `price_per_hour` what a new group would cost.
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

    @property
    def attempt(self) -> Attempt | None:
        """The last attempt, current or ended."""
        return self.attempts[-1] if self.attempts else None
