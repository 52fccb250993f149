"""Everything that one decision about one run sees, time included.

Must not import the store, a provider, the API, a clock, randomness or logging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.records import (
    Attempt,
    Checkpoint,
    Host,
    HostGroup,
    Incident,
    Kept,
    Run,
    Trainer,
)
from orchestrator.state import AttemptState
from worker.protocol import AnySpec, DataPlan


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
    """`job` is the current revision's spec, `data_plan` that of the current branch.

    `attempts` are in order of their number; `groups` all of the run's, `group` the newest of them
    as its provider sees it now; `hosts` those of `group`; `trainers` those of the last attempt and
    of the ones whose verdict may still be revised; `past_hosts` the hosts of such attempts where
    they are not in `group`; `checkpoints` the usable ones of the run's branch, newest first;
    `incident` the open one; `kept` every usable checkpoint of the run, on any branch, where the
    spec lets some be deleted. `listening_since` is when this control plane began to take reports,
    `awake_since` since when it has run without a gap, `probing_since` since when it has asked
    providers, `host_lost_after` how long a host may be
    silent before its probes decide, `provider_hold` how long the provider's hosts outlive a pause,
    `provision_within` how long it may take to bring them up.
    `hours_held` and `cost` are what the run has used of hosts over its whole life,
    `price_per_hour` what a new group would cost. `admission` says whether it is the run's turn to
    ask for hosts. `leave` is why a host of `group` is to be left, None where it is not.
    """

    now: datetime
    installation: str
    listening_since: datetime
    run: Run
    job: AnySpec
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
    awake_since: datetime | None = None
    probing_since: datetime | None = None
    groups: tuple[HostGroup, ...] = ()
    past_hosts: tuple[Host, ...] = ()
    data_plan: DataPlan | None = None
    kept: tuple[Kept, ...] = ()
    provision_within: timedelta = timedelta(hours=1)
    leave: str | None = None

    @property
    def attempt(self) -> Attempt | None:
        """The last attempt, current or ended."""
        return self.attempts[-1] if self.attempts else None

    @property
    def current(self) -> Attempt | None:
        """The attempt that has not ended."""
        last = self.attempt
        return None if last is None or last.state is AttemptState.ENDED else last

    @property
    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that a resume may use."""
        return self.checkpoints[0] if self.checkpoints else None

    @property
    def hearing_since(self) -> datetime:
        """Since when a host's silence is the host's own.

        A start that lies in the future was told by a clock that has been set back since.
        """
        awake = self.awake_since or self.listening_since
        return awake if self.listening_since > self.now else max(self.listening_since, awake)

    def gang(self, attempt: Attempt) -> list[Trainer]:
        """One record per rank, also for those that nobody told of yet."""
        told = {t.rank: t for t in self.trainers if t.attempt == attempt.number}
        return [told.get(rank, Trainer(attempt.number, rank)) for rank in range(attempt.processes)]

    def hosts_of(self, attempt: Attempt) -> tuple[Host, ...]:
        known = (*self.past_hosts, *self.hosts)
        return tuple(host for host in known if host.group == attempt.group)

    def group_of(self, attempt: Attempt) -> HostGroup | None:
        """As seen now, where it is the run's newest."""
        if self.group is not None and self.group.name == attempt.group:
            return self.group
        return next((group for group in self.groups if group.name == attempt.group), None)
