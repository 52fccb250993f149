"""The control plane of the simulated world: the real rules, store and executor, one step at a time.

A `Controller` is one process: what it has in memory dies with it. Its coroutines are the real
executor's; they are driven by hand from one await to the next, so that anything may happen at each
of them. The database is SQLite in memory, which outlives every controller.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from sqlalchemy import Connection

from orchestrator import execute, queueing, sweep, telemetry
from orchestrator.execute import Executor
from orchestrator.probing import Look, Sightings
from orchestrator.providers.base import GroupProbe, ProviderError
from orchestrator.reconcile import rules
from orchestrator.reconcile.plan import AcquireHosts, Action, Plan
from orchestrator.reconcile.snapshot import Limits, Snapshot
from orchestrator.service import Service
from orchestrator.store import commands, ingest, lease, ledger_events, looks, reads, wishes, writes
from orchestrator.store.engine import reading
from orchestrator.sweep import Sweeper, Terms
from tests.scenarios.clock import FakeClock, PlaneClock
from tests.scenarios.cloud import PRICE, Cloud
from tests.scenarios.database import Database, remembered_reads
from worker.protocol import (
    AgentReport,
    CheckpointOffer,
    Command,
    Register,
    ReportAnswer,
)

INSTALLATION = "sim"
STORAGE = "/s"
TTL = timedelta(seconds=10)
IDLE_SECONDS = 2.0
TERMS = Terms(every_seconds=8.0, grace=timedelta(seconds=10), price=lambda _: 1.0)
TELEMETRY = telemetry.Telemetry()


class Pause:
    """An await at which the schedule takes over."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@dataclass
class Task:
    """An action under way in a controller, between two of its awaits."""

    action: Action
    work: Coroutine[Any, Any, None]
    run_id: str


@dataclass
class Probing:
    look: Look
    found: GroupProbe


class _Writer:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, work: Callable[[Connection], Any]) -> Any:
        await Pause()
        done = self._database.write(work)
        await Pause()
        return done


class _Calls:
    async def run(self, call: Callable[..., Any], *given: Any) -> Any:
        await Pause()
        try:
            return call(*given)
        finally:
            await Pause()


@dataclass
class Decision:
    snap: Snapshot
    plan: Plan


@dataclass
class Controller:
    """One process of the control plane that may lead. `trouble` is told of what must never be."""

    name: str
    database: Database
    clock: PlaneClock
    cloud: Cloud
    trouble: Callable[[str], None]
    limits: Limits
    token: int | None = None
    renewed_at: float = -1e9
    stalled: bool = False  # does not renew its lease
    frozen_until: float = 0.0  # does nothing at all
    sightings: Sightings = field(default_factory=Sightings)
    tasks: list[Task] = field(default_factory=list[Task])
    probing: list[Probing] = field(default_factory=list[Probing])
    pending: dict[str, Decision] = field(default_factory=dict[str, Decision])
    looked: dict[str, tuple[tuple[int, ...], datetime]] = field(default_factory=dict[str, Any])
    woken: Counter[str] = field(default_factory=Counter[str])
    sweeping: Coroutine[Any, Any, None] | None = None
    sweep_at: float = 0.0

    def __post_init__(self) -> None:
        self.listening_since = self.clock.now()
        service = Service(
            settings=cast(Any, None),
            installation=INSTALLATION,
            read=reading(self.database.engine),
            writer=cast(Any, _Writer(self.database)),
            wakes=cast(Any, None),
            clock=self.clock,
            providers={self.cloud.name: self.cloud},
            listening_since=self.listening_since,
            telemetry=TELEMETRY,
        )
        hold = self.cloud.hold_seconds
        self.beside = looks.Beside(
            holds={self.cloud.name: timedelta(seconds=hold)} if hold else {},
            price_per_hour=lambda job: PRICE * job.hosts.count,
        )
        self.queue = queueing.Queue(lambda: self.limits, self.clock)
        self.executor = Executor(service, cast(Any, _Calls()), lambda _: None)
        self.sweeper = Sweeper(service, cast(Any, _Calls()), lambda: self.token, TERMS)

    # ---- the lease -------------------------------------------------------------------------------

    def renew(self) -> bool:
        token = self.database.write(
            lambda connection: lease.acquire(connection, lease.LEADER, self.name, TTL)
        )
        if token is not None:
            self.database.leader = self.name
        self.renewed_at = self.clock.monotonic()
        taken = token is not None and token != self.token
        self.token = token
        if taken:
            self.sightings.forget()
            self.beside = replace(self.beside, probing_since=self.clock.now())
        return taken

    @property
    def renewal_due(self) -> bool:
        return self.clock.monotonic() - self.renewed_at > TTL.total_seconds() / 3

    def frozen(self, true: FakeClock) -> bool:
        return self.frozen_until > true.monotonic()

    # ---- deciding --------------------------------------------------------------------------------

    def due(self) -> list[str]:
        """The runs that something woke, whose wish is new or whose time has come."""
        active = self.database.known("active", reads.active)
        live = self.live_groups()
        self.sightings.keep(live)
        now = self.clock.now()
        found: list[str] = []
        for run in active:
            looked, again = self.looked.get(run.id, ((), now))
            if looked != self._wakes(run.id, run.desired_generation) or again <= now:
                found.append(run.id)
        return found

    def _wakes(self, run_id: str, generation: int) -> tuple[int, ...]:
        return self.woken[run_id], self.database.woken[run_id], generation

    def decide(self, run_id: str) -> bool:
        """A look and its decision, not committed yet; False when there is nothing to change."""
        asking = (task.action for task in self.tasks if isinstance(task.action, AcquireHosts))
        acquiring = {action.group for action in asking}
        with self.database.engine.connect() as connection:
            snap = looks.snapshot(
                connection,
                run_id,
                self.clock.now(),
                INSTALLATION,
                self.listening_since,
                self.sightings.believed(acquiring),
                self.beside,
            )
            assert snap is not None
            if queueing.wants_hosts(snap):
                snap = replace(snap, admission=self.queue.admission(connection, snap))
        plan = rules.reconcile(snap)
        if plan.changes:
            self.pending[run_id] = Decision(snap, plan)
            return True
        self._start(run_id, plan)
        again = self.clock.now() + timedelta(seconds=IDLE_SECONDS)
        asked = plan.look_again_at
        wakes = self._wakes(run_id, snap.run.desired_generation)
        self.looked[run_id] = (wakes, min(again, asked) if asked else again)
        return False

    def commit(self, run_id: str) -> str:
        """`changed`, `stale` or `fenced`."""
        decision = self.pending.pop(run_id)
        token = self.token or 0
        try:
            self.database.write(
                lambda connection: writes.commit_plan(
                    connection, decision.snap, decision.plan, token, self.clock.now()
                )
            )
        except writes.Stale:
            self.queue.changed()
            return "stale"
        except lease.Fenced:
            self.token = None
            return "fenced"
        if self.database.leader != self.name:
            self.trouble(f"inv. 2: {self.name} decides, but {self.database.leader} leads")
        self.queue.changed()
        self._start(run_id, decision.plan)
        return "changed"

    # ---- actions ---------------------------------------------------------------------------------

    def _start(self, run_id: str, plan: Plan) -> None:
        for action in plan.actions:
            if all(task.action != action for task in self.tasks):
                work = self.executor.carry_out(action, self.token or 0)
                self.tasks.append(Task(action, work, run_id))

    def ready_tasks(self) -> list[Task]:
        """The first of each group: actions of one group run one after another."""
        first: dict[str, Task] = {}
        for task in self.tasks:
            first.setdefault(task.action.group, task)
        return list(first.values())

    def advance(self, task: Task) -> bool:
        """To its next await; True when it is done."""
        try:
            task.work.send(None)
        except StopIteration:
            self.tasks.remove(task)
            self.woken[task.run_id] += 1
            if isinstance(task.action, AcquireHosts):
                self.sightings.asked(task.action.group)
            return True
        return False

    def die(self) -> None:
        if self.sweeping is not None:
            self.sweeping.close()
        for task in self.tasks:
            task.work.close()
        self.tasks.clear()

    # ---- the sweep -------------------------------------------------------------------------------

    def sweep(self) -> bool:
        """To its next await, or a new one when it is time; False when there is nothing to do."""
        if self.sweeping is None:
            if self.token is None or self.clock.monotonic() < self.sweep_at:
                return False
            self.sweep_at = self.clock.monotonic() + TERMS.every_seconds
            self.sweeping = self.sweeper.sweep(self.cloud, self.token)
        try:
            self.sweeping.send(None)
        except (StopIteration, lease.Fenced, ProviderError):
            self.sweeping = None
            return False
        return True

    # ---- probes ----------------------------------------------------------------------------------

    def probe(self, group: str) -> None:
        """Begins and comes back in one moment, or comes back later with what it saw now."""
        look = self.sightings.begin(group, self.clock.now())
        with contextlib.suppress(ProviderError):
            self.probing.append(Probing(look, self.cloud.probe(group)))

    def note(self, probing: Probing) -> None:
        self.probing.remove(probing)
        if self.sightings.note(probing.look, probing.found):
            self.woken[probing.look.group.split("-")[2]] += 1

    def live_groups(self) -> list[str]:
        return [name for name, _, _ in self.database.known("groups", reads.live_groups)]


class Api:
    """The agents' three calls and people's wishes, as the real endpoints order their parts."""

    def __init__(self, database: Database, clock: PlaneClock) -> None:
        self._database = database
        self._clock = clock

    def receive(self, message: Any, secret: str) -> Any:
        now = self._clock.now()
        match message:
            case Register():
                answer = self._database.write(lambda c: ingest.register(c, message, secret, now))
                self._database.woken[message.group.split("-")[2]] += 1
                found = self.commands(message.group, message.host)
                return answer.model_copy(update={"commands": found})
            case AgentReport():
                stored = self._database.write(lambda c: ingest.report(c, message, secret, now))
                self._database.woken[stored.run_id] += stored.decisive
                found = self.commands(message.group, message.host)
                return ReportAnswer(
                    acked_seq=stored.acked_seq,
                    commands=found,
                    commands_digest=commands.commands_digest(found),
                    at=now,
                )
            case CheckpointOffer():
                answer = self._database.write(
                    lambda c: ledger_events.offer(c, message, secret, now)
                )
                self._database.woken[message.run_id] += 1
                return answer
            case _:
                raise TypeError(message)

    def commands(self, group: str, host: int) -> tuple[Command, ...]:
        return self._database.known(
            (group, host), lambda c: commands.commands_for(c, group, host, STORAGE)
        )


class _Silent:
    def info(self, *_: object, **__: object) -> None: ...
    def warning(self, *_: object, **__: object) -> None: ...

    def exception(self, *_: object, **__: object) -> None:
        if not isinstance(sys.exception(), ProviderError):
            raise  # noqa: PLE0704 - inside the handler that logs it: a bug must not be swallowed


@contextlib.contextmanager
def quiet_and_seeded(rng: Random) -> Iterator[None]:
    """Random ids and secrets follow the seed, and no logs are written."""
    seeded = SimpleNamespace(
        randbelow=rng.randrange,
        token_hex=lambda size: rng.randbytes(size).hex(),
        token_urlsafe=lambda size: rng.randbytes(size).hex(),
    )
    with (
        remembered_reads(),
        mock.patch.object(wishes, "secrets", seeded),
        mock.patch.object(execute, "secrets", seeded),
        mock.patch.object(execute, "log", _Silent()),
        mock.patch.object(sweep, "log", _Silent()),
    ):
        yield
