"""The agents' calls over HTTP: refusals as problem documents, long polls that end in time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, Engine

from orchestrator import pace
from orchestrator.api import agents
from orchestrator.reconcile.plan import MoveGroup
from orchestrator.state import GroupCause
from orchestrator.store import ingest
from orchestrator.store.callers import AgentRefused
from orchestrator.wakes import group_topic
from tests.contract.conftest import SECRET, House
from tests.contract.test_loop_runs import Plane, plane, run
from tests.fakes.simulated_agent import Refusal, SimulatedAgent
from worker.protocol import AgentReport, Envelope, TrainerExited


def agent_of(made: Plane, house: House, secret: str = SECRET) -> SimulatedAgent:
    return SimulatedAgent(made.app, house.group, 0, secret)


def envelope(event: TrainerExited) -> Envelope:
    now = datetime.now(UTC)
    return Envelope(seq=1, attempt=1, rank=0, at=now, mono=1.0, event=event)


async def refused(call: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    return caught.value


def test_refusals_are_problem_documents_that_the_agent_understands(
    house: House, engine: Engine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        house.ready()
        async with plane(engine, tmp_path) as made:
            old, new = agent_of(made, house), agent_of(made, house)
            liar = agent_of(made, house, secret="wrong")
            await old.register()
            await new.register()
            told = [
                (await refused(liar.register()), 401, "agent-not-known"),
                (await refused(old.report()), 409, "agent-replaced"),
            ]
            house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
            told.append((await refused(liar.report()), 401, "agent-not-known"))
            third = agent_of(made, house)
            told.append((await refused(third.register()), 409, "hosts-not-wanted"))
            for refusal, status, slug in told:
                assert refusal.status == status
                assert refusal.problem["type"].endswith(f":{slug}")
                assert refusal.problem["hint"]
                assert SECRET not in str(refusal.problem)
            answer = await new.report()
            assert [command.kind for command in answer.commands] == ["retire"]
            for agent in (old, new, liar, third):
                await agent.close()

    run(scenario())


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer"}]
)
def test_a_call_without_a_secret_is_refused(
    engine: Engine, tmp_path: Path, headers: dict[str, str]
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            transport = httpx.ASGITransport(made.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://p") as client:
                body = {"group": "g", "host": 0, "instance": "i"}
                answer = await client.post("/api/v1/agents/report", json=body, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"

    run(scenario())


def test_a_value_that_no_column_holds_is_answered_422(
    house: House, engine: Engine, tmp_path: Path
) -> None:
    """A 5xx would be repeated for ever."""

    async def scenario() -> None:
        house.ready()
        async with plane(engine, tmp_path) as made:
            agent = agent_of(made, house)
            await agent.register()
            agent.running = 1 << 70
            assert (await refused(agent.report())).status == 422
            agent.running = None
            await agent.report()
            await agent.close()

    run(scenario())


def test_a_long_poll_ends_with_news(house: House, engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        house.ready()
        async with plane(engine, tmp_path) as made:
            agent = agent_of(made, house)
            await agent.register()
            poll = asyncio.create_task(agent.report(wait_seconds=30))
            await asyncio.sleep(0.1)
            assert not poll.done()
            # Woken without news, it goes on waiting.
            made.service.wakes.notify(group_topic(house.group))
            await asyncio.sleep(0.1)
            assert not poll.done()
            house.now = house.tick(10**9)
            house.attempt()
            made.service.wakes.notify(group_topic(house.group))
            answer = await asyncio.wait_for(poll, 5)
            assert [command.kind for command in answer.commands] == ["start"]
            # Known commands do not end the next wait, unknown ones do.
            again = await asyncio.wait_for(agent.report(wait_seconds=30), 5)
            assert again.commands_digest == answer.commands_digest
            known = answer.commands_digest
            held = asyncio.create_task(agent.report(wait_seconds=30, known=known))
            await asyncio.sleep(0.1)
            assert not held.done()
            made.app.state.stopping.set()
            await asyncio.wait_for(held, 5)
            await agent.close()

    run(scenario())


def test_a_long_poll_ends_with_the_agents_patience(
    house: House, engine: Engine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        house.ready()
        async with plane(engine, tmp_path) as made:
            agent = agent_of(made, house)
            await agent.register()
            answer = await asyncio.wait_for(agent.report(wait_seconds=0.05), 5)
            assert answer.commands == ()
            await agent.close()

    run(scenario())


def test_a_long_poll_without_news_costs_no_second_look(
    house: House, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent asks again at once, and its next report looks in its own transaction."""
    looks: list[object] = []

    async def scenario() -> None:
        house.ready()
        async with plane(engine, tmp_path) as made:
            agent = agent_of(made, house)
            await agent.register()
            monkeypatch.setattr(agents, "_commands", lambda *at: looks.append(at) or ())
            monkeypatch.setattr(agents, "_longest_sleep", lambda _: 60.0)
            await asyncio.wait_for(agent.report(wait_seconds=0.05), 5)
            assert not looks
            monkeypatch.setattr(agents, "_longest_sleep", lambda _: 0.02)
            await asyncio.wait_for(agent.report(wait_seconds=0.05), 5)
            assert looks, "where wake-ups may be lost, it is looked now and then"
            await agent.close()

    run(scenario())


def test_what_a_report_brought_is_not_kept_while_its_sender_waits(
    house: House, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[weakref.ref[AgentReport]] = []

    async def scenario() -> None:
        house.ready()
        async with plane(engine, tmp_path) as made:
            agent = agent_of(made, house)
            await agent.register()
            read = agents._read_report

            def noted(body: bytes) -> AgentReport:
                call = read(body)
                calls.append(weakref.ref(call))
                return call

            monkeypatch.setattr(agents, "_read_report", noted)
            poll = asyncio.create_task(agent.report(wait_seconds=30))
            async with asyncio.timeout(5):
                while not calls or calls[0]() is not None:
                    await made.service.writer.run(lambda _: None)  # it holds its last batch
            assert not poll.done()
            poll.cancel()
            await agent.close()

    run(scenario())


def test_quiet_heartbeats_of_a_large_fleet_are_stored_together(
    house: House, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for the next report that somebody waits for; its sender sees no difference."""
    monkeypatch.setattr(pace, "MOST_GATHER", 3600.0)
    monkeypatch.setattr(pace, "GATHER_SHARE", 3600.0)
    together: list[int] = []
    stored = ingest.reports

    def counted(
        connection: Connection, deliveries: Sequence[ingest.Delivery]
    ) -> list[ingest.Stored | AgentRefused]:
        together.append(len(deliveries))
        return stored(connection, deliveries)

    async def scenario() -> None:
        house.ready()
        async with plane(engine, tmp_path) as made:
            agent = agent_of(made, house)
            await agent.register()
            monkeypatch.setattr(ingest, "reports", counted)
            agent.running = 1
            made.service.pace.expect(1_000)
            held = [asyncio.create_task(agent.report(wait_seconds=10)) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert not together
            await asyncio.wait_for(agent.report(), 5)
            assert together == [4]
            for one in held:
                one.cancel()
            await agent.close()

    run(scenario())


QUIET = AgentReport(group="g", host=0, instance="i", running_attempt=1, wait_seconds=20)


@pytest.mark.parametrize(
    "change",
    [
        {"wait_seconds": 0.0},
        {"running_attempt": None},
        {"known_commands": "a digest"},
        {"events": (envelope(TrainerExited(exit_code=1)),)},
    ],
)
def test_whoever_may_be_waited_for_is_not_quiet(change: dict[str, object]) -> None:
    assert agents._is_quiet(QUIET)
    assert not agents._is_quiet(QUIET.model_copy(update=change))


def test_a_waiting_agent_holds_no_transaction(house: House, engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        house.ready()
        async with plane(engine, tmp_path) as made:
            agent = agent_of(made, house)
            await agent.register()
            poll = asyncio.create_task(agent.report(wait_seconds=30))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(5):  # until its own report is stored, on a busy machine
                while made.service.read.pool.checkedout():  # pyright: ignore
                    await asyncio.sleep(0.01)
            assert not poll.done()
            poll.cancel()
            await agent.close()

    run(scenario())
