"""What the control plane counts about itself, for `/metrics`.

Owns a registry of its own, so that two control planes in one process do not share their numbers.
What is not counted as it happens but read at each scrape lies in `scraped.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from orchestrator import scraped
from orchestrator.clock import Clock
from orchestrator.queueing import Queue

DECISION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
COUNTING = (Counter, Gauge, Histogram)
COMMIT_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """The metrics of one control plane.

    A decision's outcome is `changed`, `unchanged`, `stale` (made again), `fenced` or `failed`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "longhaul_decisions",
            "Decisions about runs, by what came of them.",
            ["outcome"],
            registry=self.registry,
        )
        self.decision_seconds = Histogram(
            "longhaul_decision_seconds",
            "Time from the snapshot to the commit of one decision.",
            buckets=DECISION_BUCKETS,
            registry=self.registry,
        )
        self.last_decision = Gauge(
            "longhaul_loop_last_decision_timestamp_seconds",
            "When the loop of this control plane last looked at its runs as the leader.",
            registry=self.registry,
        )
        self.events = Counter(
            "longhaul_events_ingested",
            "Events stored, by kind; kinds that this version does not know count as unknown.",
            ["kind"],
            registry=self.registry,
        )
        self.dropped = Counter(
            "longhaul_events_dropped",
            "Events that named no attempt of their sender, or numbers that no column holds.",
            registry=self.registry,
        )
        self.provider_failures = Counter(
            "longhaul_provider_failures",
            "Calls to a provider of hosts that failed, by provider and call.",
            ["provider", "call"],
            registry=self.registry,
        )
        self.fenced_calls = Counter(
            "longhaul_provider_calls_fenced",
            "Calls to a provider left out because this control plane does not lead for certain.",
            ["provider", "call"],
            registry=self.registry,
        )
        self.pages_sent = Counter(
            "longhaul_pages_sent",
            "Pages to the person on call that the webhook took.",
            registry=self.registry,
        )
        self.pages_failed = Counter(
            "longhaul_pages_failed",
            "Tries to page that the webhook did not take.",
            registry=self.registry,
        )
        self.pages_given_up = Counter(
            "longhaul_pages_given_up",
            "Pages that were tried for a day and that nobody got.",
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "longhaul_commit_seconds",
            "Time of one transaction of this control plane that writes, its commit included.",
            buckets=COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.write_lag = Gauge(
            "longhaul_write_lag_seconds",
            "How long the oldest report has waited to be stored, at this scrape.",
            registry=self.registry,
        )
        self.leading = Gauge(
            "longhaul_leader",
            "1 while this control plane is the one that decides, else 0.",
            registry=self.registry,
        )
        self._told: dict[type[Collector], Collector] = {}
        ProcessCollector(registry=self.registry)

    def count_runs(self, read: Engine) -> None:
        """Adds `longhaul_runs`, counted in the database at each scrape; once is enough."""
        self._tell(scraped.RunCounts(read))

    def count_orphans(self, read: Engine, grace: timedelta) -> None:
        """Adds `longhaul_orphans` and what they cost, as `count_runs` does."""
        self._tell(scraped.OrphanCounts(read, grace))

    def tell_ledgers(self, read: Engine, clock: Clock) -> None:
        """Adds where the time of the runs goes that are not over, as `count_runs` does."""
        self._tell(scraped.Ledgers(read, clock))

    def tell_vitals(self, read: Engine, clock: Clock, silence: Callable[[], timedelta]) -> None:
        """Adds what alerts go by: how each run does, and whether the database answers."""
        self._tell(scraped.Vitals(read, clock, silence))
        self._tell(scraped.DatabaseUp(read))

    def tell_hosts(self, read: Engine, queue: Queue, providers: Iterable[str]) -> None:
        """Adds who waits for hosts, as `count_runs` does."""
        self._tell(scraped.Hosts(read, queue, providers))

    def tell_disks(self, folders: Mapping[str, Path]) -> None:
        """Adds the room in these folders, by a name for each, as `count_runs` does."""
        self._tell(scraped.Disks(folders))

    def _tell(self, collector: Collector) -> None:
        if type(collector) not in self._told:
            self._told[type(collector)] = collector
            self.registry.register(collector)

    @property
    def collectors(self) -> tuple[Collector, ...]:
        """All of Longhaul's own that are registered: those that count, then those that read."""
        counting = (one for one in vars(self).values() if isinstance(one, COUNTING))
        return (*counting, *self._told.values())
