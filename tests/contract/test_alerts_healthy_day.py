"""A day on which Longhaul does its work wakes nobody: the series of two replicas and three runs.

Within it hosts are preempted, a trainer crashes, a save fails once, a person pauses a run, runs
wait for hosts, a replica is restarted, and an orphan is given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.ledger.goodput import Category
from tests.contract.alert_rules import RULES, metrics_in, only, promtool, series_group

pytestmark = pytest.mark.prometheus

DAY = 24 * 60
ALL_RULES: dict[str, Any] = yaml.safe_load(RULES.read_text())
SAVE_EVERY = 10  # minutes
# When runs stop to train, and for how many minutes.
STOPS = {"r1": {200: 3, 700: 2}, "r2": {500: 8}, "r3": {}}
SPENT = (
    Category.PRODUCTIVE,
    Category.REPLAYED,
    Category.CHECKPOINT,
    Category.EVAL,
    Category.RECOVERING,
    Category.PAUSED,
)
PAUSED = range(800, 860)  # r3, by a person; and again trained from there


class Run:
    """One run, a minute at a time: trains, or is stopped, or is paused."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stops = STOPS[name]
        self.paused = PAUSED if name == "r3" else range(0)
        self.progress = self.saved = 0
        self.attempts, self.crashes = 1, 0
        self.left = 0
        self.seconds = dict.fromkeys(SPENT, 0.0)

    def minute(self, now: int) -> dict[str, float]:
        if now in self.paused:
            self.seconds[Category.PAUSED] += 60
            return {"needs_person": 0, "attempts": self.attempts, "ends_without_progress": 0}
        if now - 1 in self.paused:
            self.attempts += 1
            self.progress = self.saved = now * 60
        self._trains_or_not(now)
        return {
            "needs_person": 0,
            "attempts": self.attempts,
            "ends_without_progress": 1 if self.left else 0,
            "slow": 0,
            "slow_hosts": 1 if self.name == "r2" and now in range(300, 305) else 0,
            "silent_hosts": 1 if self.name == "r2" and now in self.stops else 0,
            "failed_saves": 1 if self.name == "r1" and now in (401, 402) else 0,
            "last_progress_timestamp_seconds": self.progress,
            "last_checkpoint_timestamp_seconds": self.saved,
            "checkpoint_interval_seconds": SAVE_EVERY * 60,
        }

    def _trains_or_not(self, now: int) -> None:
        if now in self.stops:
            self.left = self.stops[now]
            self.attempts += 1
            self.crashes += 1
        if self.left:
            self.left -= 1
            self.seconds[Category.RECOVERING] += 30
            self.seconds[Category.REPLAYED] += 30
            return
        self.progress = now * 60
        self.seconds[Category.PRODUCTIVE] += 55
        self.seconds[Category.CHECKPOINT] += 2
        self.seconds[Category.EVAL] += 3
        if now % SAVE_EVERY == 0:
            self.saved = now * 60


def series() -> dict[str, str]:
    found: dict[str, list[str]] = {}
    made = [Run(name) for name in STOPS]
    for now in range(DAY):
        for name, value in told(made, now):
            values = found.setdefault(name, ["_"] * now)
            values += ["stale" if len(values) < now else "_"] * (now - len(values))
            values.append(f"{value:g}" if value < 1e5 else f"{value:.0f}")
    return {name: " ".join(values) for name, values in found.items()}


def told(made: list[Run], now: int) -> Iterator[tuple[str, float]]:
    told_of = [(run, run.minute(now)) for run in made]
    for replica in ("a", "b"):
        here = f'job="longhaul",instance="{replica}"'
        restarting = replica == "b" and now in (600, 601)
        yield f"up{{{here}}}", 0 if restarting else 1
        if restarting:
            continue
        yield from of_service(here, replica, now)
        for run, values in told_of:
            labels = f'{here},run="{run.name}"'
            for name, value in values.items():
                yield f"longhaul_run_{name}{{{labels}}}", value
            for verdict in ("hung", "diverged", "not_reproduced", "storage_failed"):
                yield f'longhaul_run_incidents{{{labels},verdict="{verdict}"}}', 0
            yield f'longhaul_run_incidents{{{labels},verdict="crashed"}}', run.crashes
            for category, seconds in run.seconds.items():
                yield f'longhaul_run_seconds{{{labels},category="{category}"}}', seconds


def of_service(here: str, replica: str, now: int) -> Iterator[tuple[str, float]]:
    yield f"longhaul_loop_last_decision_timestamp_seconds{{{here}}}", now * 60 * (replica == "a")
    yield f"longhaul_database_up{{{here}}}", 1
    yield f"longhaul_write_lag_seconds{{{here}}}", 0.02 + 3 * (now % 120 == 0)
    yield f"longhaul_runs_not_told{{{here}}}", 0
    commits = now * 500
    for le, share in (("0.01", 0.9), ("0.1", 0.995), ("1", 0.9995), ("2.5", 1), ("+Inf", 1)):
        yield f'longhaul_commit_seconds_bucket{{{here},le="{le}"}}', commits * share
    local = f'{here},provider="local"'
    yield f"longhaul_orphans{{{local}}}", 1 if now in range(210, 215) else 0
    yield f"longhaul_orphan_cost_per_hour{{{local}}}", 4 if now in range(210, 215) else 0
    if now % 240 < 20:  # somebody waits for 20 minutes, several times a day
        yield f"longhaul_queue_oldest_timestamp_seconds{{{local}}}", (now - now % 240) * 60
    yield f'longhaul_provider_failures_total{{{local},call="probe"}}', now // 200
    yield f"longhaul_pages_sent_total{{{here}}}", 0
    yield f"longhaul_pages_failed_total{{{here}}}", now // 700
    disk = f'{here},folder="data"'
    yield f"longhaul_disk_size_bytes{{{disk}}}", 1e12
    yield f"longhaul_disk_free_bytes{{{disk}}}", 6e11 - now * 1e8


def fired(
    tmp_path: Path, fed: dict[str, str], of: dict[str, Any], expected: list[dict[str, Any]]
) -> str:
    """What is wrong with this expectation of the alerts that fired in the day."""
    of_day = f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{DAY}m]))'
    checks = [{"expr": of_day, "eval_time": f"{DAY - 1}m", "exp_samples": expected}]
    of_all = series_group(fed) | {"name": "day", "promql_expr_test": checks}
    return promtool(tmp_path, [of_all], of, every="1m")


def test_no_alert_fires_on_a_healthy_day(tmp_path: Path) -> None:
    wrong = fired(tmp_path, series(), ALL_RULES, [])
    assert not wrong, wrong


def test_the_same_look_sees_the_one_that_fires_on_another(tmp_path: Path) -> None:
    name = 'longhaul_run_needs_person{job="longhaul",instance="a",run="r1"}'
    sick = {name: f"0x1000 1x5 0x{DAY - 1007}"}
    seen = [{"labels": '{alertname="LonghaulRunWaits"}', "value": 1}]
    wrong = fired(tmp_path, sick, dict(only("LonghaulRunWaits")), seen)
    assert not wrong, wrong


def test_the_day_feeds_every_metric_of_the_rules() -> None:
    fed = {name.partition("{")[0] for name in series()}
    text = " ".join(rule["expr"] for group in ALL_RULES["groups"] for rule in group["rules"])
    assert metrics_in(text) <= fed
