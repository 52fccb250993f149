"""The agents' calls over HTTP: refusals as problem documents, long polls that end in time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from orchestrator.reconcile.plan import MoveGroup
from orchestrator.state import GroupCause
from orchestrator.wakes import group_topic
from tests.contract.conftest import SECRET, House
from tests.contract.test_loop_runs import Plane, plane, run
from tests.fakes.simulated_agent import Refusal, SimulatedAgent


def agent_of(made: Plane, house: House, secret: str = SECRET) -> SimulatedAgent:
    return SimulatedAgent(made.app, house.group, 0, secret)


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
