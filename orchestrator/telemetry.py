"""What the control plane counts about itself, for `/metrics`.

Owns a registry of its own, so that two control planes in one process do not share their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select

from orchestrator.state import RunState
from orchestrator.store.tables import runs

DECISION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


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
        self._counts_runs = False

    def count_runs(self, read: Engine) -> None:
        """Adds `longhaul_runs`, counted in the database at each scrape; once is enough."""
        if not self._counts_runs:
            self._counts_runs = True
            self.registry.register(_RunCounts(read))


class _RunCounts(Collector):
    def __init__(self, read: Engine) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        with self._read.connect() as connection:
            found = connection.execute(select(runs.c.state, func.count()).group_by(runs.c.state))
            counts = {row[0]: row[1] for row in found}
        family = self._family()
        for state in RunState:
            family.add_metric([state.value], counts.get(state.value, 0))
        return [family]

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily("longhaul_runs", "Runs by state.", labels=["state"])
