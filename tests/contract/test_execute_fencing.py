"""A control plane that no longer leads, or leads no longer for certain, calls no provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, update

from orchestrator.execute import Executor
from orchestrator.providers.base import ProviderError
from orchestrator.reconcile.plan import (
    AcquireHosts,
    Action,
    LaunchAgent,
    MakeGroup,
    MoveGroup,
    ReleaseHosts,
)
from orchestrator.records import HostRequest
from orchestrator.service import Service
from orchestrator.settings import Settings
from orchestrator.state import GroupCause
from orchestrator.store import tables
from orchestrator.store.engine import reading
from orchestrator.store.writer import Writer
from tests.contract.conftest import INSTALLATION, START, House
from tests.fakes.provider import FakeProvider
from tests.scenarios.clock import FakeClock


@dataclass
class Calls:
    """The provider's threads: `meanwhile` happens between the look and the call."""

    meanwhile: Callable[[], None] = lambda: None

    async def run(self, call: Callable[[], Any]) -> Any:
        self.meanwhile()
        return await asyncio.to_thread(call)


@dataclass
class Bench:
    house: House
    service: Service
    provider: FakeProvider
    clock: FakeClock
    calls: Calls = field(default_factory=Calls)

    def carry_out(self, action: Action, token: int | None = None) -> None:
        executor = Executor(self.service, cast(Any, self.calls), lambda _: None)
        asyncio.run(executor.carry_out(action, self.house.token if token is None else token))

    def fenced(self, call: str) -> float:
        return self.service.telemetry.fenced_calls.labels("local", call)._value.get()

    def lease(self, **values: object) -> None:
        with self.house.engine.begin() as connection:
            connection.execute(update(tables.leases).values(**values))

    @property
    def group(self) -> dict[str, object]:
        return self.house.rows("host_groups")[0]


@pytest.fixture
def bench(house: House, engine: Engine, tmp_path: Path) -> Iterator[Bench]:
    """A run whose group was asked for a moment ago, under a leader."""
    house.lead()
    house.submit()
    house.commit(MakeGroup(house.group, 1, "local", HostRequest(1, 1)))
    writer, provider, clock = Writer(engine), FakeProvider(), FakeClock()
    service = Service(
        settings=Settings(data_dir=tmp_path),
        installation=INSTALLATION,
        read=reading(engine),
        writer=writer,
        wakes=cast(Any, None),
        clock=clock,
        providers={"local": provider},
        listening_since=START,
    )
    yield Bench(house, service, provider, clock)
    writer.close()


def actions(group: str) -> list[Action]:
    return [
        AcquireHosts(group, "local", HostRequest(1, 1)),
        LaunchAgent(group, "local", 0),
        ReleaseHosts(group, "local"),
    ]


def move_to_fit(bench: Bench, action: Action) -> None:
    """The group is in the state that the action is meant for."""
    name = bench.house.group
    if isinstance(action, LaunchAgent):
        bench.house.commit(MoveGroup(name, GroupCause.ASKED), MoveGroup(name, GroupCause.HOSTS_UP))
        bench.provider.acquire(name, HostRequest(1, 1))
        bench.provider.calls.clear()
    if isinstance(action, ReleaseHosts):
        bench.house.commit(MoveGroup(name, GroupCause.NOT_WANTED))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_leader_calls(bench: Bench, which: int) -> None:
    action = actions(bench.house.group)[which]
    move_to_fit(bench, action)
    bench.carry_out(action)
    assert len(bench.provider.calls) == 1
    assert bench.fenced(type(action).__name__) == 0


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_older_token_calls_nothing(bench: Bench, which: int) -> None:
    action = actions(bench.house.group)[which]
    move_to_fit(bench, action)
    bench.carry_out(action, bench.house.token - 1)
    assert bench.provider.calls == []
    assert bench.fenced(type(action).__name__) == 1
    assert bench.house.rows("hosts")[0]["secret_sha256"] is None


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_thread_that_waited_past_the_lease_calls_nothing(bench: Bench, which: int) -> None:
    """Somebody else may lead by then, though nothing says so yet."""
    action = actions(bench.house.group)[which]
    move_to_fit(bench, action)
    bench.calls.meanwhile = lambda: bench.clock.advance(61)
    bench.carry_out(action)
    assert bench.provider.calls == []
    assert bench.fenced(type(action).__name__) == 1


def test_a_thread_that_waited_a_little_calls(bench: Bench) -> None:
    bench.calls.meanwhile = lambda: bench.clock.advance(30)
    bench.carry_out(actions(bench.house.group)[0])
    assert len(bench.provider.calls) == 1


def test_a_lease_that_ran_out_is_renewed_before_anything_is_called(bench: Bench) -> None:
    bench.lease(expires_at=tables.EPOCH)
    bench.carry_out(actions(bench.house.group)[0])
    assert bench.provider.calls == []
    bench.house.lead()
    bench.carry_out(actions(bench.house.group)[0])
    assert len(bench.provider.calls) == 1


def test_hosts_are_asked_for_only_while_they_are_wanted(bench: Bench) -> None:
    bench.house.commit(MoveGroup(bench.house.group, GroupCause.NOT_WANTED))
    bench.carry_out(actions(bench.house.group)[0])
    assert bench.provider.calls == []


@pytest.mark.parametrize("causes", [(), (GroupCause.ASKED,)])
def test_only_what_is_given_back_is_released(bench: Bench, causes: tuple[GroupCause, ...]) -> None:
    for cause in causes:
        bench.house.commit(MoveGroup(bench.house.group, cause))
    bench.carry_out(ReleaseHosts(bench.house.group, "local"))
    assert bench.provider.calls == []


def test_what_a_former_leader_is_told_is_not_kept(bench: Bench) -> None:
    """The call was allowed; by the time that it fails, somebody else leads."""
    bench.provider.fail["acquire"] = ProviderError("no such zone")
    bench.calls.meanwhile = lambda: bench.lease(token=tables.leases.c.token + 1)
    bench.carry_out(actions(bench.house.group)[0])
    assert bench.group["detail"] is None
    assert bench.fenced("AcquireHosts") == 1
    bench.calls.meanwhile = lambda: None
    bench.carry_out(actions(bench.house.group)[0], bench.house.token + 1)
    assert bench.group["detail"] == "no such zone"
