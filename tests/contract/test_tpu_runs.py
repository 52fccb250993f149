"""A run on a fake v4-32 with everything that a cloud does to it: real rules, store and provider.

Time is one clock of the test's, for the cloud and for the control plane; agents are a few lines
that make the real agents' calls. Each ends in success, nothing is left in the cloud, and the run's
own cost is what the cloud bills.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from orchestrator.presets import PRESETS
from orchestrator.prices import price_per_hour
from orchestrator.providers.base import ProviderError
from orchestrator.providers.tpu import TpuProvider, TpuTerms
from orchestrator.providers.tpu_cloud import TpuCloud, open_client
from orchestrator.providers.tpu_seen import VmAddress
from orchestrator.reconcile.plan import AcquireHosts, Action, LaunchAgent, ReleaseHosts
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.settings import Settings
from orchestrator.state import TERMINAL_RUNS, GroupState, RunState
from orchestrator.store import group_writes, ingest, ledger_events, looks, orphans, tables, writes
from orchestrator.store.callers import AgentRefused, secret_digest
from orchestrator.store.committing import Stale
from orchestrator.store.engine import open_engine
from orchestrator.store.looks import Beside, Sighting
from tests.contract.conftest import INSTALLATION, House
from tests.fakes.cloud_tpu import CloudServer, FakeCloud, Pace
from tests.fakes.cloud_tpu.faults import Full
from worker.protocol import (
    PROTOCOL_VERSION,
    AgentReport,
    AttemptSpec,
    CheckpointOffer,
    CheckpointWritten,
    Command,
    Envelope,
    JobSpec,
    KillTrainer,
    Register,
    Retire,
    StartTrainer,
    StepBeat,
    StepCompleted,
    TrainerExited,
    TrainerFinished,
    TrainerStarted,
)

A, B = ZONES = ("us-central2-b", "us-east5-a")
STEPS, SAVE_EVERY = 40, 10
STEP_SECONDS = 360.0  # four hours of training
PRICE = 3.2


class Agent:
    """One host's agent and trainer. Does nothing once its VM is off."""

    def __init__(self, world: World, group: str, host: int, secret: str) -> None:
        self.world, self.group, self.host, self.secret = world, group, host, secret
        self.instance = secrets.token_hex(8)
        self.alive = True
        self.spec: AttemptSpec | None = None
        self.step = 0
        self._seq = 0
        self._fence = 0
        self._registered = False

    def live(self) -> None:
        """One moment: what it was told, then a step where one is due."""
        try:
            if not self._registered:
                self._register()
            for command in self._report():
                self._obey(command)
            if self.alive and self.spec is not None and self.world.steps_now:
                self._train(self.spec)
        except AgentRefused:
            self.alive = False

    def _register(self) -> None:
        call = Register(
            protocol=PROTOCOL_VERSION,
            group=self.group,
            host=self.host,
            instance=self.instance,
            facts=House.facts(self.host),
        )
        with self.world.engine.begin() as connection:
            ingest.register(connection, call, self.secret, self.world.now)
        self._registered = True

    def _report(self, *events: Any, attempt: int = 0) -> tuple[Command, ...]:
        call = AgentReport(
            group=self.group,
            host=self.host,
            instance=self.instance,
            events=tuple(self._envelope(event, attempt) for event in events),
            running_attempt=None if self.spec is None else self.spec.attempt,
            free_port=next(self.world.ports),
        )
        delivery = ingest.Delivery(call, self.secret, self.world.now, "/storage")
        with self.world.engine.begin() as connection:
            [stored] = ingest.reports(connection, [delivery])
        if isinstance(stored, Exception):
            raise stored
        return stored.commands

    def _envelope(self, event: Any, attempt: int) -> Envelope:
        self._seq += 1
        at = self.world.now
        return Envelope(
            seq=self._seq, attempt=attempt, rank=self.host, at=at, mono=0.0, event=event
        )

    def _obey(self, command: Command) -> None:
        match command:
            case StartTrainer() if command.spec.attempt > self._fence:
                self._fence = command.spec.attempt
                self.spec = command.spec
                self.step = self.spec.resume.step if self.spec.resume else 0
                self._report(TrainerStarted(pid=1), attempt=self._fence)
            case KillTrainer() if self.spec is not None:
                self.spec = None
                exited = TrainerExited(
                    exit_code=None, signal=9, killed_by_agent=True, why_killed=command.reason
                )
                self._report(exited, attempt=command.attempt)
            case Retire():
                self.alive = False
            case _:
                pass

    def _train(self, spec: AttemptSpec) -> None:
        self.step += 1
        self._report(self._stepped(), attempt=spec.attempt)
        if self.host == 0 and self.step % SAVE_EVERY == 0:
            self._save(spec)
        if self.step >= spec.job.steps and self.alive:
            self.spec = None
            done = (TrainerFinished(step=self.step, drained=False), TrainerExited(exit_code=0))
            self._report(*done, attempt=spec.attempt)

    def _stepped(self) -> StepCompleted | StepBeat:
        if self.host:
            return StepBeat(step=self.step, seconds=1.0, data_wait=0.0)
        return StepCompleted(
            step=self.step,
            loss=1.0 / self.step,
            grad_norm=1.0,
            learning_rate=0.1,
            tokens=2048,
            seconds=1.0,
            data_wait=0.0,
            batch_hash=f"{self.step:016x}",
        )

    def _save(self, spec: AttemptSpec) -> None:
        written = CheckpointWritten(
            checkpoint_id=spec.checkpoint_id(self.step),
            step=self.step,
            uri=spec.checkpoint_uri(self.step),
            bytes=1,
            files=1,
            manifest_sha256="a" * 64,
            state_digest="b" * 64,
            stall_seconds=0.0,
            write_seconds=0.0,
        )
        self._report(written, attempt=spec.attempt)
        self.world.saving(self)
        if not self.alive:
            return
        offer = CheckpointOffer(
            group=self.group,
            host=self.host,
            instance=self.instance,
            run_id=spec.run_id,
            attempt=spec.attempt,
            checkpoint=written,
        )
        with self.world.engine.begin() as connection:
            ledger_events.offer(connection, offer, self.secret, self.world.now)


class Vms:
    """The launcher, and the machines behind the addresses that the cloud gives."""

    def __init__(self) -> None:
        self.world: World | None = None
        self._node: dict[str, str] = {}
        self.agents: dict[str, Agent] = {}
        self._made = 0

    def start(self, node: str, hosts: int) -> list[tuple[str, str]]:
        made: list[tuple[str, str]] = []
        for _ in range(hosts):
            self._made += 1
            address = f"10.0.0.{self._made}"
            self._node[address] = node
            made.append((address, f"203.0.113.{self._made}"))
        return made

    def stop(self, node: str) -> None:
        for address in [one for one, of in self._node.items() if of == node]:
            del self._node[address]
            agent = self.agents.pop(address, None)
            if agent is not None:
                agent.alive = False

    def host_keys(self, node: str, number: int) -> dict[str, str]:
        return {}

    def launch(self, vm: VmAddress, group: str, host: int, secret: str) -> None:
        if vm.internal not in self._node:
            raise ProviderError("no route to host")
        self.end(vm, group, host)
        assert self.world is not None
        self.agents[vm.internal] = Agent(self.world, group, host, secret)

    def alive(self, vm: VmAddress, group: str, host: int) -> tuple[bool | None, bool | None]:
        if vm.internal not in self._node:
            return None, None
        agent = self.agents.get(vm.internal)
        if agent is None or not agent.alive:
            return False, False
        return True, agent.spec is not None

    def end(self, vm: VmAddress, group: str, host: int) -> None:
        agent = self.agents.pop(vm.internal, None)
        if agent is not None:
            agent.alive = False

    def announce(self, vm: VmAddress, group: str, host: int, control_url: str) -> None:
        """Nobody asks."""


@dataclass
class World:
    """`faults` are looked at every moment, and each is done once: a condition and what follows."""

    engine: Engine
    server: CloudServer
    cloud: FakeCloud
    vms: Vms
    settings: Settings
    now: datetime
    token: int = 0
    provider: TpuProvider = field(init=False)
    seen: dict[str, Sighting] = field(default_factory=dict)
    faults: list[tuple[Callable[[], bool], Callable[[], object]]] = field(default_factory=list)
    at_save: tuple[int, Callable[[], object]] | None = None
    after_acquire: Callable[[], object] | None = None
    steps_now: bool = False
    short: int = 0
    ports: Iterator[int] = field(default_factory=lambda: count(5000))

    def __post_init__(self) -> None:
        self.vms.world = self
        self.restart()

    def restart(self) -> None:
        """Another process leads: it knows nothing but the database and what the cloud shows."""
        calls = TpuCloud(open_client(self.server.endpoint), "p1", 5.0, self.tick)
        terms = TpuTerms(ZONES, {}, poll_seconds=2.0)
        self.provider = TpuProvider(
            calls, INSTALLATION, self.vms, terms, lambda: self.now, self.seconds
        )
        self.seen = {}

    def seconds(self) -> float:
        return self.now.timestamp()

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # ---- the run ---------------------------------------------------------------------------------

    @property
    def house(self) -> House:
        return House(self.engine, now=self.now, token=self.token)

    def submit(self) -> None:
        house = self.house
        self.token = house.lead()
        house.submit()
        spec = PRESETS["demo-1m"].spec.model_dump() | {
            "name": "r1",
            "steps": STEPS,
            "batch": {"sequences": 16},
            "optimizer": {"warmup_steps": 1},
            "checkpoint": {"every_steps": SAVE_EVERY},
            "hosts": {"provider": "tpu", "tpu": {"type": "v4-32", "tier": "spot"}},
        }
        job = JobSpec.model_validate(spec)
        with self.engine.begin() as connection:
            connection.execute(update(tables.revisions).values(spec=job.model_dump_json()))

    def snapshot(self) -> Snapshot:
        beside = Beside(
            awake_since=self.now - timedelta(days=1),
            probing_since=self.now - timedelta(days=1),
            price_per_hour=lambda job: price_per_hour(job, self.settings),
        )
        since = self.now - timedelta(days=1)
        with self.engine.connect() as connection:
            snap = looks.snapshot(
                connection, "r1", self.now, INSTALLATION, since, self.seen, beside
            )
        assert snap is not None
        return snap

    @property
    def running(self) -> bool:
        return any(agent.spec is not None for agent in self.vms.agents.values())

    @property
    def step(self) -> int:
        return max((agent.step for agent in self.vms.agents.values()), default=0)

    def saving(self, agent: Agent) -> None:
        if self.at_save is not None and agent.step == self.at_save[0]:
            _, fault = self.at_save
            self.at_save = None
            fault()

    def group(self) -> str:
        made = [row["name"] for row in self.house.rows("host_groups")]
        return str(made[-1])

    def finish(self, most: int = 1000) -> None:
        """Moment by moment until the run is over and its hosts are given back."""
        for moment in range(most):
            if moment % 200 == 0:
                self.token = self.house.lead()
            snap = self.decide()
            gone = snap.group is not None and snap.group.state is GroupState.GONE
            if snap.run.state in TERMINAL_RUNS and gone:
                return
            assert snap.run.state is not RunState.PAUSED, snap.run.reason
            self.befall()
            self.steps_now = self.running and self.short == 0
            self.short = max(0, self.short - 1)
            self.tick(STEP_SECONDS if self.steps_now else 1.0)
            for agent in list(self.vms.agents.values()):
                if agent.alive:
                    agent.live()
        raise AssertionError((self.house.rows("events")[-10:], self.cloud.left))

    def befall(self) -> None:
        """The moments after that are short, as those between real looks are."""
        for fault in [one for one in self.faults if one[0]()]:
            self.faults.remove(fault)
            fault[1]()
            self.short = 15

    def decide(self) -> Snapshot:
        snap = self.snapshot()
        if snap.group is not None and snap.group.state is not GroupState.GONE:
            began = self.now
            self.seen = {snap.group.name: Sighting(began, self.provider.probe(snap.group.name))}
            snap = self.snapshot()
        plan = reconcile(snap)
        try:
            with self.engine.begin() as connection:
                writes.commit_plan(connection, snap, plan, self.token, self.now)
        except Stale:
            return snap
        for action in plan.actions:
            self._carry_out(action)
        return snap

    def _carry_out(self, action: Action) -> None:
        try:
            match action:
                case AcquireHosts():
                    self.provider.acquire(action.group, action.request)
                    self.seen = {}
                    if self.after_acquire is not None:
                        died, self.after_acquire = self.after_acquire, None
                        died()
                case LaunchAgent():
                    self._launch(action)
                case ReleaseHosts():
                    self.provider.release(action.group)
        except ProviderError as error:
            with self.engine.begin() as connection:
                group_writes.provider_failed(
                    connection,
                    action.group,
                    str(error)[:500],
                    not error.retryable,
                    self.token,
                    self.now,
                )

    def _launch(self, action: LaunchAgent) -> None:
        secret = secrets.token_urlsafe(16)
        with self.engine.begin() as connection:
            let_in = group_writes.launch_secret(
                connection, action.group, action.host, secret_digest(secret), self.token
            )
        if let_in:
            self.provider.launch(action.group, action.host, secret)

    # ---- afterwards ------------------------------------------------------------------------------

    def check(self) -> None:
        """The three lines that each of these runs must end with."""
        snap = self.snapshot()
        assert snap.run.state is RunState.SUCCEEDED
        assert self.cloud.left == []
        assert self.provider.owned() == []
        assert self.cloud.bill.running == []
        billed = self.cloud.bill.cost("lh-", self.now.timestamp())
        assert billed > 0
        assert snap.cost == pytest.approx(billed, rel=0.01)

    def sweep(self) -> list[str]:
        """As the leader's: what no run wants is given back once it is sure."""
        listing = orphans.Listing("tpu", self.provider.owned(), {})
        with self.engine.begin() as connection:
            due = orphans.sweep(
                connection, listing, INSTALLATION, timedelta(seconds=60), self.token, self.now
            )
        for name in due:
            self.provider.release(name)
        return due

    def accepted(self) -> list[int]:
        return sorted({int(str(row["step"])) for row in self.house.rows("checkpoints")})

    def verdicts(self) -> list[object]:
        return [row["verdict"] for row in self.house.rows("attempts")]

    def groups(self) -> list[object]:
        return [row["generation"] for row in self.house.rows("host_groups")]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One database is enough: the store has its own tests on both."""
    url = f"sqlite:///{tmp_path / 'longhaul.db'}"
    engine = open_engine(url)
    tables.metadata.create_all(engine)
    engine.dispose()
    return url


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[World]:
    vms = Vms()
    start = datetime.now(UTC)
    clock: list[World] = []
    pace = Pace(queue=5, provision=20, suspend=5, delete=10, fail=5)
    cloud = FakeCloud(
        "p1",
        ZONES,
        pace,
        lambda: clock[0].now.timestamp() if clock else start.timestamp(),
        vms,
    )
    settings = Settings(data_dir=tmp_path, prices={"tpu": PRICE})
    with CloudServer(cloud) as server:
        made = World(engine, server, cloud, vms, settings, start)
        clock.append(made)
        made.submit()
        yield made


def test_a_run_trains_and_its_cost_is_what_the_cloud_bills(world: World) -> None:
    world.finish()
    world.check()
    assert world.verdicts() == ["completed"]
    assert world.accepted() == list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))


def test_preempted_while_it_is_provisioned(world: World) -> None:
    def coming() -> bool:
        own = world.cloud.find(world.group())
        return own is not None and own.node is not None

    world.faults.append((coming, lambda: world.cloud.preempt(world.group())))
    world.finish()
    world.check()
    assert world.groups() == [1, 2]
    assert world.verdicts() == ["completed"]


def test_preempted_while_its_agents_are_started(world: World) -> None:
    def launched() -> bool:
        return bool(world.vms.agents)

    world.faults.append((launched, lambda: world.cloud.preempt(world.group())))
    world.finish()
    world.check()
    assert world.groups() == [1, 2]


def test_preempted_while_it_trains(world: World) -> None:
    world.faults.append((lambda: world.step == 27, lambda: world.cloud.preempt(world.group())))
    world.finish()
    world.check()
    assert world.verdicts() == ["preempted", "completed"]
    resumed = [row["resumed_from_step"] for row in world.house.rows("attempts")]
    assert resumed == [0, 20]


def test_preempted_in_the_midst_of_a_save(world: World) -> None:
    """Written and not yet accepted: the checkpoint does not count."""
    world.at_save = (20, lambda: world.cloud.preempt(world.group()))
    world.finish()
    world.check()
    assert world.verdicts() == ["preempted", "completed"]
    resumed = [row["resumed_from_step"] for row in world.house.rows("attempts")]
    assert resumed == [0, 10]


def test_suspended_without_a_word(world: World) -> None:
    world.faults.append((lambda: world.step == 33, lambda: world.cloud.suspend(world.group())))
    world.finish()
    world.check()
    assert world.verdicts() == ["preempted", "completed"]


@pytest.mark.parametrize("full", list(Full))
def test_no_capacity_in_the_first_zone(world: World, full: Full) -> None:
    world.cloud.faults.full = {A: full}
    world.finish()
    world.check()
    assert world.groups() == [1]
    assert world.verdicts() == ["completed"]
    assert {line.zone for line in world.cloud.bill.lines if line.kind == "node"} == {B}


def test_the_control_plane_dies_between_the_create_and_the_commit(world: World) -> None:
    def died() -> None:
        state = world.house.rows("host_groups")[0]["state"]
        assert state == GroupState.REQUESTED
        world.restart()

    world.after_acquire = died
    world.finish()
    world.check()
    creates = [call for call in world.cloud.calls if call[0] == "CreateQueuedResource"]
    assert len(creates) == 1


def test_a_create_that_runs_out_of_time_and_is_filled_an_hour_later(world: World) -> None:
    world.cloud.faults.late_fills = [3600.0]
    world.cloud.faults.full = {A: Full.AT_ONCE}
    world.faults.append((lambda: world.running, world.cloud.faults.full.clear))
    for at in (28, 32, 36):
        world.faults.append((lambda at=at: world.step >= at, world.sweep))
    world.finish()
    own = world.snapshot()
    assert own.run.state is RunState.SUCCEEDED
    assert world.cloud.left == []
    zones = {line.zone for line in world.cloud.bill.lines if line.kind == "node"}
    assert zones == {A, B}


def test_everything_at_once(world: World) -> None:
    """A cloud that conflicts, is late, stale and slow, and takes the slice twice."""
    faults = world.cloud.faults
    faults.conflicts, faults.conflicts_after = 1, 1
    faults.late_addresses, faults.stale_seconds, faults.slow_deletes = 7, 30, 15
    faults.lost_deletes = 2
    faults.unavailable = {"GetNode": 2, "GetQueuedResource": 2, "DeleteQueuedResource": 2}
    for step in (12, 31):
        world.faults.append(
            (lambda step=step: world.step == step, lambda: world.cloud.preempt(world.group()))
        )
    world.finish()
    world.tick(31)
    world.check()
    assert world.verdicts() == ["preempted", "preempted", "completed"]
