"""What is read at each scrape, for `/metrics`: from the database, the disk and the writer.

Owns one collector for each kind of fact. One that cannot read the database gives nothing, and
`longhaul_database_up` is 0: the scrape itself must still say what is wrong.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.clock import Clock
from orchestrator.ledger.goodput import account
from orchestrator.queueing import Queue
from orchestrator.reconcile.queue import provider_scope
from orchestrator.state import TERMINAL_RUNS, RunState, Verdict
from orchestrator.store import claims, orphans, views, vitals
from orchestrator.store.tables import installation, runs

MOST_LEDGERS = 100  # a ledger of a long run takes milliseconds, and a label for each run its room
# Told of with 0 too: a rule sees that something rose only where it was there before.
WATCHED = (Verdict.HUNG, Verdict.DIVERGED, Verdict.NOT_REPRODUCED, Verdict.STORAGE_FAILED)

log = structlog.get_logger(__name__)


def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, labels=labels)


class FromDatabase(Collector):
    def __init__(self, read: Engine) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return self.families()

    def collect(self) -> Iterable[Metric]:
        try:
            with self._read.connect() as connection:
                return self.told(connection)
        except SQLAlchemyError as error:
            log.warning("nothing could be read for a scrape", reason=type(error).__name__)
            return ()

    @abstractmethod
    def families(self) -> tuple[GaugeMetricFamily, ...]:
        """Without a sample yet."""

    @abstractmethod
    def told(self, connection: Connection) -> Iterable[Metric]: ...


class DatabaseUp(FromDatabase):
    def families(self) -> tuple[GaugeMetricFamily, ...]:
        words = "1 when the database answered at this scrape, else 0."
        return (gauge("longhaul_database_up", words),)

    def collect(self) -> Iterable[Metric]:
        (up,) = self.families()
        up.add_metric([], 1.0 if any(super().collect()) else 0.0)
        return (up,)

    def told(self, connection: Connection) -> Iterable[Metric]:
        connection.execute(select(installation.c.id)).scalar()
        return self.families()


class RunCounts(FromDatabase):
    def families(self) -> tuple[GaugeMetricFamily, ...]:
        return (gauge("longhaul_runs", "Runs by state.", "state"),)

    def told(self, connection: Connection) -> Iterable[Metric]:
        found = connection.execute(select(runs.c.state, func.count()).group_by(runs.c.state))
        counts = {row[0]: row[1] for row in found}
        (family,) = self.families()
        for state in RunState:
            family.add_metric([state.value], counts.get(state.value, 0))
        return (family,)


class OrphanCounts(FromDatabase):
    """Only those that sweeps are sure of. A provider that had one once is told of with 0."""

    def __init__(self, read: Engine, grace: timedelta) -> None:
        super().__init__(read)
        self._grace = grace

    def families(self) -> tuple[GaugeMetricFamily, ...]:
        cost = "What they cost an hour, as far as prices are known, in the service's currency."
        return (
            gauge("longhaul_orphans", "Host groups at a provider that no run wants.", "provider"),
            gauge("longhaul_orphan_cost_per_hour", cost, "provider"),
        )

    def told(self, connection: Connection) -> Iterable[Metric]:
        found = orphans.listed(connection, self._grace)
        number, cost = self.families()
        for provider in orphans.providers(connection):
            sure = [one for one in found if one.provider == provider and one.sure]
            number.add_metric([provider], len(sure))
            cost.add_metric([provider], sum(one.price_per_hour or 0.0 for one in sure))
        return number, cost


class Ledgers(FromDatabase):
    """The goodput ledgers of the newest runs that are not over, by id: who scrapes needs no token,
    and names are for those who have one."""

    def __init__(self, read: Engine, clock: Clock) -> None:
        super().__init__(read)
        self._clock = clock

    def families(self) -> tuple[GaugeMetricFamily, ...]:
        seconds = (
            "Where the time of a run went since it was submitted; of the newest"
            f" {MOST_LEDGERS} runs that are not over."
        )
        cost = "What the hosts of the same runs have cost, in the service's currency."
        return (
            gauge("longhaul_run_seconds", seconds, "run", "category"),
            gauge("longhaul_run_cost", cost, "run"),
        )

    def told(self, connection: Connection) -> Iterable[Metric]:
        active = (
            select(runs)
            .where(runs.c.state.not_in(TERMINAL_RUNS))
            .order_by(runs.c.created_at.desc(), runs.c.id)
            .limit(MOST_LEDGERS)
        )
        seconds, cost = self.families()
        for run in connection.execute(active).all():
            ledger = account(views.times_of(connection, run, self._clock.now()))
            for category, amount in ledger.parts.items():
                seconds.add_metric([run.id, category.value], amount / 1e6)
            cost.add_metric([run.id], ledger.cost)
        return seconds, cost


class Vitals(FromDatabase):
    """How each run does that trains, stumbles or waits for a person, by id.

    `silence` is after how long without a report a host counts as silent.
    """

    def __init__(self, read: Engine, clock: Clock, silence: Callable[[], timedelta]) -> None:
        super().__init__(read)
        self._clock = clock
        self._silence = silence
        self._specs = vitals.Specs()

    def families(self) -> tuple[GaugeMetricFamily, ...]:
        return (*self._of_runs().values(), *self._of_all())

    def told(self, connection: Connection) -> Iterable[Metric]:
        now = self._clock.now()
        found, left_out = vitals.all_of(connection, now, now - self._silence(), self._specs)
        told = self._of_runs()
        for one in found:
            for name, family in told.items():
                _add(family, one, name)
        waiting, beyond = self._of_all()
        waiting.add_metric([], vitals.needing_person(connection, now))
        beyond.add_metric([], left_out)
        return (*told.values(), waiting, beyond)

    @staticmethod
    def _of_runs() -> dict[str, GaugeMetricFamily]:
        """By the field of `Vital` that each tells."""
        words = {
            "needs_person": (
                "needs_person",
                "1 while the run is paused or failed until a person decides; of failed runs for a"
                " day.",
            ),
            "attempts": ("attempts", "Attempts of the run so far."),
            "ends": (
                "ends_without_progress",
                "Attempts in a row that failed since the newest accepted step.",
            ),
            "incidents": (
                "incidents",
                "Incidents of the run so far, by the verdict that holds now. A verdict may be"
                " revised for five minutes, so this is no counter.",
            ),
            "slow": ("slow", "1 while steps take much longer than the run's best did."),
            "slow_hosts": ("slow_hosts", "Hosts that all others of the run wait for."),
            "silent_hosts": (
                "silent_hosts",
                "Hosts of the run whose agent has not reported for longer than it should.",
            ),
            "failed_saves": (
                "failed_saves",
                "Saves in a row that failed since the last accepted checkpoint.",
            ),
            "progress_at": (
                "last_progress_timestamp_seconds",
                "When the run, which is meant to train, last completed a step that it had not"
                " completed before; not before the first attempt of the newest wish.",
            ),
            "saved_at": (
                "last_checkpoint_timestamp_seconds",
                "When the current attempt's last checkpoint was accepted, or its first step done.",
            ),
            "save_seconds": (
                "checkpoint_interval_seconds",
                "After how long the next checkpoint should follow, by the spec and the pace of the"
                " run.",
            ),
        }
        more = {"incidents": ("verdict",)}
        return {
            name: gauge(f"longhaul_run_{short}", told, "run", *more.get(name, ()))
            for name, (short, told) in words.items()
        }

    @staticmethod
    def _of_all() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            gauge(
                "longhaul_runs_needing_person",
                "Runs that wait for a person, of all there are; failed ones for a day.",
            ),
            gauge(
                "longhaul_runs_not_told",
                f"Runs beyond the {vitals.MOST_RUNS} that have metrics of their own.",
            ),
        )


def _add(family: GaugeMetricFamily, one: vitals.Vital, name: str) -> None:
    if name == "incidents":
        for verdict, number in one.incidents.items():
            if number or verdict in WATCHED:
                family.add_metric([one.run_id, verdict.value], number)
        return
    value = getattr(one, name)
    if value is not None:
        seconds = value.timestamp() if name.endswith("_at") else float(value)
        family.add_metric([one.run_id], seconds)


class Hosts(FromDatabase):
    """Who waits for hosts, and how many there are."""

    def __init__(self, read: Engine, queue: Queue, providers: Iterable[str]) -> None:
        super().__init__(read)
        self._queue = queue
        self._providers = tuple(providers)

    def families(self) -> tuple[GaugeMetricFamily, ...]:
        oldest = "Since when the first of them waits; of providers that somebody waits for."
        limit = "Hosts of the provider that all runs may hold together, where that is limited."
        return (
            gauge("longhaul_queued_runs", "Runs that wait for hosts.", "provider"),
            gauge("longhaul_queue_oldest_timestamp_seconds", oldest, "provider"),
            gauge("longhaul_hosts_claimed", "Hosts that runs hold or are to get.", "provider"),
            gauge("longhaul_hosts_limit", limit, "provider"),
        )

    def told(self, connection: Connection) -> Iterable[Metric]:
        line, held = self._queue.line(connection), claims.held(connection)
        waiting, oldest, claimed, limit = self.families()
        for provider in self._providers:
            mine = [one for one in line.waiting.values() if one.provider == provider]
            waiting.add_metric([provider], len(mine))
            if mine:
                since = min(one.queued_at for one in mine)
                oldest.add_metric([provider], since.timestamp())
            claimed.add_metric([provider], held.get(provider_scope(provider), 0))
            most = line.limits.of(provider_scope(provider))
            if most is not None:
                limit.add_metric([provider], most)
        return waiting, oldest, claimed, limit


class Disks(Collector):
    """The file systems of the service's folders; one that is not there yet is left out."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterable[Metric]:
        free, size = self._families()
        for name, folder in self._folders.items():
            try:
                found = os.statvfs(folder)
            except OSError:
                continue
            free.add_metric([name], found.f_bavail * found.f_frsize)
            size.add_metric([name], found.f_blocks * found.f_frsize)
        return free, size

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        free = "Room that the service may still use in the file system of a folder of its own."
        return (
            gauge("longhaul_disk_free_bytes", free, "folder"),
            gauge("longhaul_disk_size_bytes", "Size of the same file system.", "folder"),
        )
