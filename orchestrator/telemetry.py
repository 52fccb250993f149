"""What the control plane counts about itself, for `/metrics`.

Owns a registry of its own, so that two control planes in one process do not share their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select

from orchestrator.clock import Clock
from orchestrator.ledger.goodput import account
from orchestrator.state import TERMINAL_RUNS, RunState
from orchestrator.store import orphans, views
from orchestrator.store.tables import runs

MOST_LEDGERS = 100  # a ledger of a long run takes milliseconds, and a label for each run its room
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
        self._counts_runs = False
        self._counts_orphans = False
        self._tells_ledgers = False

    def count_runs(self, read: Engine) -> None:
        """Adds `longhaul_runs`, counted in the database at each scrape; once is enough."""
        if not self._counts_runs:
            self._counts_runs = True
            self.registry.register(_RunCounts(read))

    def count_orphans(self, read: Engine, grace: timedelta) -> None:
        """Adds `longhaul_orphans` and what they cost, as `count_runs` does."""
        if not self._counts_orphans:
            self._counts_orphans = True
            self.registry.register(_OrphanCounts(read, grace))

    def tell_ledgers(self, read: Engine, clock: Clock) -> None:
        """Adds where the time of the runs goes that are not over, as `count_runs` does."""
        if not self._tells_ledgers:
            self._tells_ledgers = True
            self.registry.register(_Ledgers(read, clock))


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


class _OrphanCounts(Collector):
    """Only those that sweeps are sure of. A provider that had one once is told of with 0."""

    def __init__(self, read: Engine, grace: timedelta) -> None:
        self._read = read
        self._grace = grace

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterable[Metric]:
        with self._read.connect() as connection:
            found = orphans.listed(connection, self._grace)
            known = orphans.providers(connection)
        number, cost = self._families()
        for provider in known:
            sure = [one for one in found if one.provider == provider and one.sure]
            number.add_metric([provider], len(sure))
            cost.add_metric([provider], sum(one.price_per_hour or 0.0 for one in sure))
        return number, cost

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        number = "Host groups at a provider that no run wants."
        cost = "What they cost an hour, as far as prices are known, in the service's currency."
        return (
            GaugeMetricFamily("longhaul_orphans", number, labels=["provider"]),
            GaugeMetricFamily("longhaul_orphan_cost_per_hour", cost, labels=["provider"]),
        )


class _Ledgers(Collector):
    """The goodput ledgers of the newest runs that are not over, by id: who scrapes needs no token,
    and names are for those who have one."""

    def __init__(self, read: Engine, clock: Clock) -> None:
        self._read = read
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterable[Metric]:
        active = (
            select(runs)
            .where(runs.c.state.not_in(TERMINAL_RUNS))
            .order_by(runs.c.created_at.desc(), runs.c.id)
            .limit(MOST_LEDGERS)
        )
        seconds, cost = self._families()
        with self._read.connect() as connection:
            for run in connection.execute(active).all():
                ledger = account(views.times_of(connection, run, self._clock.now()))
                for category, amount in ledger.parts.items():
                    seconds.add_metric([run.id, category.value], amount / 1e6)
                cost.add_metric([run.id], ledger.cost)
        return seconds, cost

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        seconds = (
            "Where the time of a run went since it was submitted; of the newest"
            f" {MOST_LEDGERS} runs that are not over."
        )
        cost = "What the hosts of the same runs have cost, in the service's currency."
        return (
            GaugeMetricFamily("longhaul_run_seconds", seconds, labels=["run", "category"]),
            GaugeMetricFamily("longhaul_run_cost", cost, labels=["run"]),
        )
