"""Everything that one decision about one run sees, time included.

Must not import the store, a provider, the API, a clock, randomness or logging.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.records import Attempt, Checkpoint, Host, HostGroup, Incident, Run, Trainer
from worker.protocol import JobSpec


@dataclass(frozen=True)
class Snapshot:
    """`job` is the current revision's spec.

    `attempts` are in order of their number; `hosts` those of `group`; `trainers` those of the last
    attempt; `checkpoints` the usable ones of the run's branch, newest first; `incident` the open
    one. `listening_since` is when this control plane began to take reports.
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

    @property
    def attempt(self) -> Attempt | None:
        """The last attempt, current or ended."""
        return self.attempts[-1] if self.attempts else None
