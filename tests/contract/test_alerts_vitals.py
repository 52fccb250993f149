"""What alerts go by, from rows: progress, saves, silence, failures in a row, who needs a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, insert, update

from orchestrator.clock import SystemClock
from orchestrator.queueing import Queue
from orchestrator.reconcile.snapshot import Limits
from orchestrator.scraped import DatabaseUp, Disks, Hosts, RunCounts, Vitals
from orchestrator.state import Verdict
from orchestrator.store import tables, vitals
from orchestrator.store.engine import open_engine
from orchestrator.store.vitals import Specs, Vital
from tests.contract.conftest import START, House
from worker.protocol import CommandSpec

SILENCE = timedelta(seconds=30)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@dataclass
class Rows:
    """A run's rows, written as a test wants them; times are seconds after `START`."""

    house: House
    specs: Specs = field(default_factory=Specs)

    def put(self, table: str, **values: object) -> None:
        with self.house.engine.begin() as connection:
            connection.execute(insert(tables.metadata.tables[table]).values(**values))

    def set(self, table: str, **values: object) -> None:
        with self.house.engine.begin() as connection:
            connection.execute(update(tables.metadata.tables[table]).values(**values))

    def attempt(self, number: int, made: float, **values: object) -> None:
        common = {"run_id": "r1", "number": number, "revision": 1, "branch": 1, "processes": 1}
        made_as = {"group": self.house.group, "desired_generation": 1, "state": "ended"}
        given = {"verdict": "crashed", "ended_at": at(made + 1), "created_at": at(made)}
        self.put("attempts", **(common | made_as | given | values))

    def trains(self, number: int, made: float, first: float, **values: object) -> None:
        """The current attempt, which has made its first step."""
        now = {"state": "running", "verdict": None, "ended_at": None}
        self.attempt(number, made, **(now | {"first_step_at": at(first)} | values))
        self.set("runs", state="running")

    def told(self, number: int, step: int, seconds: float, rank: int = 0, **more: object) -> None:
        key = {"run_id": "r1", "attempt": number, "rank": rank}
        self.put("trainers", **key, last_step=step, last_step_at=at(seconds), **more)

    def checkpoint(self, number: int, step: int, accepted: float) -> None:
        self.put(
            "checkpoints",
            run_id="r1",
            id=f"a{number}-s{step}",
            attempt=number,
            branch=1,
            step=step,
            uri="",
            state="accepted",
            bytes=1,
            files=1,
            manifest_sha256="",
            state_digest="",
            stall_seconds=0.0,
            write_seconds=0.0,
            written_at=at(accepted),
            accepted_at=at(accepted),
        )
        with self.house.engine.begin() as connection:
            a = tables.attempts
            mine = update(a).where(a.c.run_id == "r1", a.c.number == number)
            connection.execute(mine.values(accepted_step=step))

    def failed_save(self, number: int, seconds: float, rank: int = 0) -> None:
        values = {"run_id": "r1", "attempt": number, "rank": rank, "kind": "save_failed"}
        self.put("events", **values, at=at(seconds), received_at=at(seconds), body="{}")

    def all(self, now: float = 1000) -> list[Vital]:
        with self.house.engine.connect() as connection:
            found, _ = vitals.all_of(connection, at(now), at(now) - SILENCE, self.specs)
        return found

    def one(self, now: float = 1000) -> Vital:
        [found] = self.all(now)
        return found


@pytest.fixture
def rows(house: House) -> Rows:
    house.ready()
    return Rows(house)


def test_progress_is_a_step_that_no_attempt_of_the_branch_had_completed(rows: Rows) -> None:
    rows.attempt(1, made=10)
    rows.told(1, step=100, seconds=200)
    rows.trains(2, made=210, first=220, resumed_from_step=80)
    rows.told(2, step=90, seconds=300)
    assert rows.one().progress_at == at(200), "ten steps were trained again"
    rows.set("trainers", last_step=101, last_step_at=at(400))
    assert rows.one().progress_at == at(400)


def test_steps_of_another_branch_are_new(rows: Rows) -> None:
    rows.attempt(1, made=10, branch=1)
    rows.told(1, step=100, seconds=200)
    rows.trains(2, made=210, first=220, branch=2, resumed_from_step=50)
    rows.told(2, step=60, seconds=300)
    assert rows.one().progress_at == at(300)


def test_the_newest_wish_starts_the_clock_of_progress(rows: Rows) -> None:
    """Else a run that is resumed after a week would be told of at once."""
    rows.attempt(1, made=10)
    rows.told(1, step=100, seconds=200)
    rows.attempt(2, made=500, desired_generation=2)
    rows.trains(3, made=600, first=601, desired_generation=2, resumed_from_step=90)
    assert rows.one().progress_at == at(500), "a further attempt of the same wish does not"


def test_nothing_is_said_of_a_program_that_tells_nothing(rows: Rows) -> None:
    program = CommandSpec.model_validate({"name": "r1", "command": ["train"], "steps": 10})
    rows.set("revisions", spec=program.model_dump_json())
    rows.trains(1, made=10, first=20)
    assert rows.one().progress_at is None
    rows.checkpoint(1, step=5, accepted=70)
    assert rows.one().progress_at == at(70)


def test_a_run_that_is_not_to_train_makes_no_progress_and_no_saves(rows: Rows) -> None:
    rows.trains(1, made=10, first=20)
    rows.told(1, step=100, seconds=200)
    for state in ("stopping", "paused", "provisioning"):
        rows.set("runs", state=state)
        found = rows.one()
        assert (found.progress_at, found.saved_at, found.save_seconds) == (None, None, None)
    for state in ("queued", "succeeded", "cancelled"):
        rows.set("runs", state=state)
        assert rows.all() == []


def test_the_interval_of_saves_is_the_runs_own(rows: Rows) -> None:
    """Every 25 steps by its spec, at the pace that it tells or else was seen."""
    rows.trains(1, made=10, first=20)
    rows.told(1, step=1, seconds=20)
    assert rows.one().save_seconds is None, "from one step no pace can be seen"
    rows.set("trainers", last_step=11, last_step_at=at(40))
    found = rows.one()
    assert (found.saved_at, found.save_seconds) == (at(20), 50.0)
    rows.set("trainers", pace_seconds=4.0)
    assert rows.one().save_seconds == 100.0
    rows.set("attempts", save_seconds=60.0)
    assert rows.one().save_seconds == 60.0, "whichever comes first"
    rows.checkpoint(1, step=25, accepted=90)
    rows.checkpoint(1, step=50, accepted=140)
    assert rows.one().saved_at == at(140)


def test_failed_saves_count_in_a_row(rows: Rows) -> None:
    rows.attempt(1, made=1)
    rows.failed_save(1, 5)
    rows.trains(2, made=10, first=20)
    assert rows.one().failed_saves == 0, "that was another attempt's"
    for rank in (0, 1):
        rows.failed_save(2, 50, rank)
    assert rows.one().failed_saves == 1, "both hosts tell of the same save"
    rows.failed_save(2, 60)
    assert rows.one().failed_saves == 2
    rows.checkpoint(2, step=25, accepted=70)
    assert rows.one().failed_saves == 0


def test_hosts_that_do_not_report_are_counted(rows: Rows) -> None:
    rows.trains(1, made=10, first=20)
    rows.set("hosts", last_seen_at=at(100))
    assert rows.one(now=125).silent_hosts == 0
    assert rows.one(now=135).silent_hosts == 1
    rows.set("host_groups", state="releasing")
    assert rows.one(now=135).silent_hosts == 0


def test_who_is_slow_is_told_of_the_current_attempt(rows: Rows) -> None:
    rows.attempt(1, made=1, slow_why="slow then")
    rows.told(1, step=1, seconds=2, slow_why="slow then")
    rows.trains(2, made=10, first=20)
    assert (rows.one().slow, rows.one().slow_hosts) == (False, 0)
    rows.told(2, step=5, seconds=30, rank=0, slow_why="host 0 keeps the others waiting")
    rows.told(2, step=5, seconds=30, rank=1)
    rows.set("attempts", slow_why="a step takes 2 s")
    assert (rows.one().slow, rows.one().slow_hosts) == (True, 1)


def test_failures_in_a_row_end_with_progress_and_with_a_new_wish(rows: Rows) -> None:
    rows.attempt(1, made=10, accepted_step=50)
    rows.attempt(2, made=20, verdict="preempted")
    rows.attempt(3, made=30, verdict="superseded")
    found = rows.one()
    assert (found.attempts, found.ends) == (3, 2), "a decision is no failure"
    rows.attempt(4, made=40, accepted_step=75)
    assert rows.one().ends == 1
    rows.trains(5, made=50, first=60, desired_generation=2)
    assert rows.one().ends == 0


def test_incidents_are_counted_by_the_verdict_that_holds(rows: Rows) -> None:
    common = {"run_id": "r1", "opened_at": at(5), "summary": "", "evidence": "[]", "done": "[]"}
    rows.put("incidents", **common, number=1, attempt=1, verdict="crashed", needs_person=False)
    rows.put("incidents", **common, number=2, attempt=2, verdict="hung", needs_person=False)
    rows.set("runs", state="running")
    found = rows.one().incidents
    assert (found[Verdict.CRASHED], found[Verdict.HUNG], found[Verdict.DIVERGED]) == (1, 1, 0)
    assert Verdict.COMPLETED not in found
    rows.set("incidents", verdict="preempted")
    found = rows.one().incidents
    assert (found[Verdict.CRASHED], found[Verdict.PREEMPTED]) == (0, 2)


def test_who_waits_for_a_person(rows: Rows) -> None:
    def waits(now: float = 1000) -> list[bool]:
        return [one.needs_person for one in rows.all(now)]

    def counted(now: float = 1000) -> int:
        with rows.house.engine.connect() as connection:
            return vitals.needing_person(connection, at(now))

    settled = {"desired_generation": 1, "settled_generation": 1}
    rows.set("runs", state="paused", desired="run", **settled)
    assert (waits(), counted()) == ([True], 1)
    rows.set("runs", desired="pause")
    assert (waits(), counted()) == ([False], 0), "a person wanted it so"
    rows.set("runs", desired="run", desired_generation=2)
    assert (waits(), counted()) == ([False], 0), "a person has answered"
    rows.set("runs", state="failed", finished_at=at(900), **settled)
    assert (waits(), counted()) == ([True], 1)
    day_later = 901 + 24 * 3600
    assert (waits(day_later), counted(day_later)) == ([], 0), "that is no news any more"


def test_those_in_trouble_come_first_where_there_are_too_many(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.set("runs", state="running")
    settled = {"desired_generation": 1, "settled_generation": 1, "revision": 1, "branch": 1}
    for run_id, state in (("r2", "paused"), ("r3", "recovering"), ("r4", "running")):
        own = {"id": run_id, "name": run_id, "owner": "me", "state": state, "state_since": START}
        rows.put("runs", **own, **settled, desired="run", created_at=at(1))
    monkeypatch.setattr(vitals, "MOST_RUNS", 3)
    with rows.house.engine.connect() as connection:
        found, left_out = vitals.all_of(connection, at(10), at(0), rows.specs)
    assert [one.run_id for one in found] == ["r2", "r3", "r4"]
    assert left_out == 1


def test_a_scrape_tells_of_each_run_by_its_id(rows: Rows) -> None:
    rows.trains(1, made=10, first=20)
    rows.told(1, step=11, seconds=40)
    registry = CollectorRegistry()
    registry.register(Vitals(rows.house.engine, SystemClock(), lambda: SILENCE))
    value = registry.get_sample_value
    run = {"run": "r1"}
    assert value("longhaul_run_last_progress_timestamp_seconds", run) == at(40).timestamp()
    assert value("longhaul_run_checkpoint_interval_seconds", run) == 50.0
    assert value("longhaul_run_needs_person", run) == 0
    assert value("longhaul_run_incidents", run | {"verdict": "hung"}) == 0
    assert value("longhaul_run_incidents", run | {"verdict": "crashed"}) is None
    assert value("longhaul_runs_needing_person") == 0


def test_a_scrape_tells_who_waits_for_hosts(house: House) -> None:
    house.submit()
    limits = Limits({"local": 4}, None)
    registry = CollectorRegistry()
    registry.register(Hosts(house.engine, Queue(lambda: limits, SystemClock()), ("local", "ssh")))
    value = registry.get_sample_value
    local, ssh = {"provider": "local"}, {"provider": "ssh"}
    assert value("longhaul_queued_runs", local) == 1
    assert value("longhaul_queue_oldest_timestamp_seconds", local) == START.timestamp()
    assert (value("longhaul_hosts_claimed", local), value("longhaul_hosts_limit", local)) == (0, 4)
    assert value("longhaul_queued_runs", ssh) == 0
    assert value("longhaul_queue_oldest_timestamp_seconds", ssh) is None
    assert value("longhaul_hosts_limit", ssh) is None


def test_a_scrape_tells_the_room_of_folders_that_are_there(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(Disks({"data": tmp_path, "storage": tmp_path / "not yet"}))
    data = {"folder": "data"}
    free = registry.get_sample_value("longhaul_disk_free_bytes", data)
    size = registry.get_sample_value("longhaul_disk_size_bytes", data)
    assert free is not None
    assert size is not None
    assert 0 < free < size
    assert registry.get_sample_value("longhaul_disk_size_bytes", {"folder": "storage"}) is None


def test_a_scrape_says_that_the_database_is_down_and_no_more(engine: Engine) -> None:
    def told(of: Engine) -> dict[str, float]:
        registry = CollectorRegistry()
        registry.register(RunCounts(of))
        registry.register(DatabaseUp(of))
        found = (one for family in registry.collect() for one in family.samples)
        return {one.name: one.value for one in found}

    assert told(engine)["longhaul_database_up"] == 1
    nowhere = open_engine("sqlite:////nowhere/longhaul.db")
    assert told(nowhere) == {"longhaul_database_up": 0}
    nowhere.dispose()
