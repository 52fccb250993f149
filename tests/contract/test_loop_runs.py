"""The loop over a fake provider: with the real rules and agents, and with rules that misbehave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest
from sqlalchemy import Engine, select, update

from orchestrator import loop as the_loop
from orchestrator.api.agents import mount
from orchestrator.api.errors import install_handlers
from orchestrator.clock import SystemClock
from orchestrator.ledger.goodput import Category
from orchestrator.loop import Loop
from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.reconcile.plan import MakeGroup, Plan
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.service import Service
from orchestrator.settings import Settings
from orchestrator.store import lease, tables
from orchestrator.store.engine import reading
from orchestrator.store.writer import Writer
from orchestrator.wakes import LOOP, Wakes, decision_topic
from tests.contract.conftest import INSTALLATION, House
from tests.fakes.provider import FakeProvider
from tests.fakes.simulated_agent import Refusal, SimulatedAgent


@dataclass
class Plane:
    """One control plane without HTTP: a service, its agents' API as an app, and what is made."""

    service: Service
    provider: FakeProvider
    app: FastAPI
    agents: list[SimulatedAgent] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    crash_at: dict[int, int] = field(default_factory=dict)

    def employ(self, group: str, host: int, secret: str) -> None:
        agent = SimulatedAgent(self.app, group, host, secret)
        if host == 0:
            agent.crash_at = self.crash_at
        self.agents.append(agent)
        self.tasks.append(asyncio.create_task(agent.live()))

    def rows(self, table: str) -> list[Mapping[str, Any]]:
        with self.service.read.connect() as connection:
            of = tables.metadata.tables[table]
            found = connection.execute(select(of).order_by(*of.primary_key)).mappings()
            return list(found)

    def run(self, run_id: str = "r1") -> Mapping[str, Any]:
        return next(row for row in self.rows("runs") if row["id"] == run_id)

    async def until(self, what: Callable[[], Any], seconds: float = 15.0) -> Any:
        deadline = asyncio.get_running_loop().time() + seconds
        while not (found := what()):
            assert asyncio.get_running_loop().time() < deadline, self.rows("events")[-12:]
            await asyncio.sleep(0.01)
        return found

    async def wish(self, desired: str) -> None:
        def write(connection: Any) -> None:
            connection.execute(
                update(tables.runs).values(
                    desired=desired, desired_generation=tables.runs.c.desired_generation + 1
                )
            )

        await self.service.writer.run(write)
        self.service.wakes.notify(decision_topic("r1"), LOOP)


@asynccontextmanager
async def plane(engine: Engine, folder: Path) -> AsyncIterator[Plane]:
    running = asyncio.get_running_loop()
    provider = FakeProvider()
    writer = Writer(engine)
    service = Service(
        settings=Settings(data_dir=folder, probe_seconds=0.02, lease_ttl_seconds=5.0),
        installation=INSTALLATION,
        read=reading(engine),
        writer=writer,
        wakes=Wakes(),
        clock=SystemClock(),
        providers={"local": provider},
        listening_since=datetime.now(UTC),
    )
    app = FastAPI()
    app.state.service = service
    app.state.stopping = asyncio.Event()
    mount(app)
    install_handlers(app)
    made = Plane(service, provider, app)
    provider.on_launch = lambda *at: running.call_soon_threadsafe(made.employ, *at)
    try:
        yield made
    finally:
        for event in provider.hang.values():
            event.set()
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        writer.close()


@asynccontextmanager
async def looping(
    made: Plane, rules: Callable[[Snapshot], Plan] = reconcile
) -> AsyncIterator[Loop]:
    stop = asyncio.Event()
    loop = Loop(made.service, rules)
    task = asyncio.create_task(loop.run(stop))
    try:
        yield loop
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def submit(engine: Engine, hosts: int = 1, run_id: str = "r1") -> None:
    House(engine, now=datetime.now(UTC), hosts=hosts, run_id=run_id).submit()


def test_a_run_trains_crashes_resumes_and_finishes(engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.crash_at[1] = 110
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "succeeded")
                await made.until(lambda: not made.provider.groups)
                await made.until(lambda: made.rows("host_groups")[0]["state"] == "gone")
            attempts = made.rows("attempts")
            told = [(a["verdict"], a["resumed_from_step"], a["accepted_step"]) for a in attempts]
            assert told == [("crashed", 0, 100), ("completed", 100, 200)]
            steps = [(point["attempt"], point["step"]) for point in made.rows("metric_points")]
            expected = [(1, n) for n in range(1, 110)] + [(2, n) for n in range(101, 201)]
            assert sorted(steps) == expected
            incident = made.rows("incidents")[0]
            assert incident["closed_by_attempt"] == 2
            assert made.provider.most_at_once == 1

    run(scenario())


def test_a_gang_fails_together_and_starts_together(engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.crash_at[1] = 60
            submit(engine, hosts=2)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "succeeded")
            assert [a["verdict"] for a in made.rows("attempts")] == ["crashed", "completed"]
            first, second = made.agents
            assert first.started == second.started
            assert [spec.attempt for spec in first.started] == [1, 2]
            assert len({spec.coordinator for spec in first.started}) == 2
            crashed = [row for row in made.rows("trainers") if row["attempt"] == 1]
            assert [row["exited_at"] is not None for row in crashed] == [True, True]

    run(scenario())


@pytest.mark.parametrize(("wish", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_wish_to_stop_is_obeyed_and_hosts_are_given_back(
    engine: Engine, tmp_path: Path, wish: str, state: str
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "running")
                await made.wish(wish)
                await made.until(lambda: made.run()["state"] == state)
                await made.until(lambda: not made.provider.groups)
                if wish == "pause":
                    await made.wish("run")
                    await made.until(lambda: made.run()["state"] == "succeeded")

    run(scenario())


def test_an_agent_that_dies_is_replaced_and_its_trainer_buried(
    engine: Engine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "running")
                made.tasks[0].cancel()
                made.provider.groups[f"lh-{INSTALLATION}-r1-g1"].agents[0] = False
                await made.until(lambda: made.run()["state"] == "succeeded")
            assert len(made.agents) == 2
            assert [a["verdict"] for a in made.rows("attempts")] == ["crashed", "completed"]
            with pytest.raises(Refusal) as refusal:
                await _again(made, made.agents[0]).report()
            assert refusal.value.status == 401

    run(scenario())


def test_a_host_that_falls_silent_is_noticed_long_before_its_runs_turn(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a large fleet, where the turn of a run that does well comes after minutes."""
    monkeypatch.setattr(the_loop, "LEAST_IDLE_SECONDS", 1000.0)
    monkeypatch.setattr(the_loop, "MOST_LOOKS_PER_SECOND", 0.001)
    monkeypatch.setattr(the_loop, "LIST_SECONDS", 0.05)

    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            settings = made.service.settings.model_copy(update={"host_lost_seconds": 1.0})
            object.__setattr__(made.service, "settings", settings)
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "running")
                made.tasks[0].cancel()
                await made.until(lambda: made.rows("hosts")[0]["unreachable_at"])

    run(scenario())


def _again(made: Plane, old: SimulatedAgent) -> SimulatedAgent:
    agent = SimulatedAgent(made.app, old._group, old._host, "an-old-secret")
    agent.instance = old.instance
    return agent


def test_a_refusal_of_the_provider_pauses_the_run_with_its_words(
    engine: Engine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.provider.fail["acquire"] = ProvisionRefused("no such machine type")
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "paused")
            assert "no such machine type" in made.run()["reason"]
            assert made.rows("incidents")[0]["needs_person"]

    run(scenario())


def test_a_failing_provider_is_asked_again_and_told_of_once(engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.provider.fail["launch"] = ProviderError("the link is down")
            submit(engine)
            group = f"lh-{INSTALLATION}-r1-g1"

            def detail() -> bool:
                groups = made.rows("host_groups")
                return bool(groups) and groups[0]["detail"] == "the link is down"

            async with looping(made):
                await made.until(detail)
                assert made.run()["state"] == "provisioning"
            told = [event for event in made.rows("events") if event["kind"] == "provider_failed"]
            assert len(told) == 1
            assert ("launch", group) in made.provider.calls

    run(scenario())


def test_where_the_time_of_a_run_goes_is_there_for_prometheus(
    engine: Engine, tmp_path: Path
) -> None:
    """As long as the run is not over, and the categories sum to the time since it came."""

    def told(made: Plane) -> dict[str, float]:
        [family] = [
            found
            for found in made.service.telemetry.registry.collect()
            if found.name == "longhaul_run_seconds"
        ]
        assert all(one.labels["run"] == made.run()["id"] for one in family.samples)
        return {one.labels["category"]: one.value for one in family.samples}

    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            submit(engine)
            since = made.run()["created_at"]
            async with looping(made):
                await made.until(lambda: told(made).get("productive", 0.0) > 0)
                before = (made.service.clock.now() - since).total_seconds()
                seconds = told(made)
                after = (made.service.clock.now() - since).total_seconds()
                assert set(seconds) == {category.value for category in Category}
                assert before <= sum(seconds.values()) <= after
                text = generate_latest(made.service.telemetry.registry).decode()
                assert f'longhaul_run_cost{{run="{made.run()["id"]}"}}' in text
                await made.until(lambda: made.run()["state"] == "succeeded")
                assert told(made) == {}

    run(scenario())


def test_one_runs_crash_or_hanging_provider_stops_no_other(engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            submit(engine, run_id="bad")
            submit(engine, run_id="r1")

            def rules(snap: Snapshot) -> Plan:
                if snap.run.id == "bad":
                    raise RuntimeError("a bug in the rules")
                return reconcile(snap)

            async with looping(made, rules):
                await made.until(lambda: made.run()["state"] == "succeeded")
            assert made.run("bad")["state"] == "queued"
            text = generate_latest(made.service.telemetry.registry).decode()
            assert 'longhaul_decisions_total{outcome="failed"}' in text
            assert 'longhaul_runs{state="succeeded"} 1.0' in text
            assert 'longhaul_runs{state="queued"} 1.0' in text
            assert 'longhaul_events_ingested_total{kind="step"} 200.0' in text
            assert "longhaul_loop_last_decision_timestamp_seconds" in text

    run(scenario())


def test_a_hanging_provider_delays_its_own_run_alone(engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            for number in range(12):
                submit(engine, run_id=f"slow{number}")
            submit(engine, run_id="r1")
            slow = FakeProvider()
            slow.hang = {"probe": threading.Event(), "acquire": threading.Event()}
            made.provider.hang["never"] = slow.hang["probe"]
            made.provider.hang["neither"] = slow.hang["acquire"]
            providers = {"local": made.provider, "slow": slow}
            object.__setattr__(made.service, "providers", providers)

            def rules(snap: Snapshot) -> Plan:
                return _on_slow(reconcile(snap)) if snap.run.id != "r1" else reconcile(snap)

            async with looping(made, rules):
                await made.until(lambda: made.run()["state"] == "succeeded")
                assert not slow.groups
                for event in slow.hang.values():
                    event.set()

    run(scenario())


def _on_slow(plan: Plan) -> Plan:
    return replace(
        plan,
        changes=tuple(
            replace(change, provider="slow") if isinstance(change, MakeGroup) else change
            for change in plan.changes
        ),
        actions=tuple(replace(action, provider="slow") for action in plan.actions),
    )


def test_of_two_loops_one_leads_and_the_other_follows_when_it_leaves(
    engine: Engine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            async with looping(made) as first:
                await made.until(lambda: first.leading)
                async with looping(made) as second:
                    await asyncio.sleep(0.05)
                    assert not second.leading
            with made.service.read.connect() as connection:
                owner = connection.scalar(select(tables.leases.c.owner))
            assert owner == lease.NOBODY
            async with looping(made) as third:
                await made.until(lambda: third.leading)

    run(scenario())


def test_a_loop_that_lost_the_lease_decides_nothing(engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made, looping(made) as loop:
            await made.until(lambda: loop.leading)

            def usurp(connection: Any) -> None:
                connection.execute(
                    update(tables.leases).values(
                        owner="another",
                        token=tables.leases.c.token + 1,
                        expires_at=datetime(2100, 1, 1, tzinfo=UTC),
                    )
                )

            await made.service.writer.run(usurp)
            submit(engine)
            made.service.wakes.notify(LOOP)
            await made.until(lambda: not loop.leading)
            assert made.run()["state"] == "queued"
            assert made.rows("events") == []

    run(scenario())


def test_hosts_that_vanish_are_replaced_by_new_ones(engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "running")
                made.tasks[0].cancel()
                del made.provider.groups[f"lh-{INSTALLATION}-r1-g1"]
                await made.until(lambda: made.run()["state"] == "succeeded")
            told = [(a["verdict"], a["group"][-2:]) for a in made.rows("attempts")]
            assert told == [("host_lost", "g1"), ("completed", "g2")]
            lost, served = sorted(made.rows("host_groups"), key=lambda row: row["generation"])
            assert (lost["lost_in_wish"], served["lost_in_wish"]) == (1, None)

    run(scenario())


def test_a_launch_that_is_refused_for_good_pauses_the_run_at_once(
    engine: Engine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.provider.fail["launch"] = ProvisionRefused("no such image")
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "paused")
            assert "no such image" in made.run()["reason"]

    run(scenario())


def test_a_pause_holds_its_hosts_and_a_resume_goes_on_with_them(
    engine: Engine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.provider.hold_seconds = 600.0
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "running")
                await made.wish("pause")
                await made.until(lambda: made.run()["state"] == "paused")
                assert made.rows("host_groups")[0]["state"] == "ready"
                await made.wish("run")
                await made.until(lambda: made.run()["state"] == "succeeded")
            assert len(made.rows("host_groups")) == 1
            assert len(made.agents) == 1

    run(scenario())
