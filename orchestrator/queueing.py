"""The line of waiting runs as the database shows it, worked out anew only when it has changed.

Owns which runs are in the line and what they ask for. The loop asks whose turn it is, the API what
a run waits for. What is remembered here may be old for a moment; the claims of the commit are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, Engine, and_, exists, or_, select

from orchestrator.clock import Clock
from orchestrator.reconcile.queue import Line, Waiting, line_up
from orchestrator.reconcile.snapshot import Admission, Limits, Snapshot
from orchestrator.records import HostRequest
from orchestrator.settings import Settings
from orchestrator.state import Desired, GroupState, RunState
from orchestrator.store import claims, drains, reads
from orchestrator.store.conditions import HELD
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import host_groups, runs
from orchestrator.wakes import LOOP, Wakes, decision_topic

log = structlog.get_logger(__name__)
FRESH_SECONDS = 0.2  # the line may be as old as that
LOOK_SECONDS = 2.0
OLDEST_SECONDS = 30.0  # after which it is worked out anew whatever the database says
GOING = (RunState.PROVISIONING, RunState.STARTING, RunState.RUNNING, RunState.RECOVERING)


def limits_of(settings: Settings) -> Limits:
    """This machine has a limit in any case."""
    named = {"local", *settings.max_hosts}
    by_name = {name: limit for name in named if (limit := settings.hosts_of(name)) is not None}
    return Limits(by_name, settings.max_hosts_per_owner)


def wants_hosts(snap: Snapshot) -> bool:
    """Whether the next decision may ask the provider for hosts, so that the line matters."""
    gone = snap.group is None or snap.group.state is GroupState.GONE
    return snap.run.desired is Desired.RUN and (
        snap.run.state is RunState.QUEUED or (gone and snap.run.state in GOING)
    )


@dataclass(frozen=True)
class _Worked:
    """A line, the mark of the rows that it follows from, and when they were last compared."""

    line: Line
    mark: tuple[object, ...]
    made_at: float
    seen_at: float


@dataclass(frozen=True)
class _Asks:
    provider: str
    request: HostRequest


class Queue:
    """Safe to use from any thread. `limits` are asked for at each working out."""

    def __init__(self, limits: Callable[[], Limits], clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._worked: _Worked | None = None
        self._asks: Mapping[tuple[str, int], _Asks] = {}

    def changed(self) -> None:
        """Something was claimed or given back: look again before the next answer."""
        with self._lock:
            self._worked = None

    def line(self, connection: Connection, wanted: str | None = None) -> Line:
        """The line; made anew in any case when `wanted` is not in it."""
        with self._lock:
            worked, now = self._worked, self._clock.monotonic()
            known = worked is not None and (wanted is None or wanted in worked.line.waiting)
            if worked is not None and known and now - worked.seen_at < FRESH_SECONDS:
                return worked.line
            mark = (*claims.mark(connection), drains.all_drains(connection))
            old = worked is None or now - worked.made_at > OLDEST_SECONDS
            if worked is None or old or not known or worked.mark != mark:
                line = self._line_up(connection)
                worked = _Worked(line, mark, now, now)
            self._worked = _Worked(worked.line, mark, worked.made_at, now)
            return worked.line

    def admission(self, connection: Connection, snap: Snapshot) -> Admission:
        """Whether it is the run's turn, for a snapshot of it that `wants_hosts`."""
        return self.line(connection, snap.run.id).admission(snap.run.id)

    def waits_for(self, connection: Connection, run_id: str, *, named: bool = True) -> str | None:
        """What a run in the line waits for, `named` with those who hold it; else None."""
        line = self.line(connection, run_id)
        place = line.places.get(run_id) if named else None
        holders = claims.holders(connection, place.scope, run_id) if place else ()
        admission = line.admission(run_id, holders)
        return admission.never or admission.waits_for

    def _line_up(self, connection: Connection) -> Line:
        waiting = self._waiting(connection)
        asks = {run_id: asked for (run_id, _), asked in self._asks.items()}
        barred = drains.barred(
            connection, ((run_id, one.provider, one.request) for run_id, one in asks.items())
        )
        return line_up(waiting, claims.held(connection), self._limits(), barred)

    def _waiting(self, connection: Connection) -> list[Waiting]:
        found = _rows(connection)
        self._asks = _asked_for(connection, {(run.id, run.revision) for run in found}, self._asks)
        going = [run.id for run in found if run.state != RunState.QUEUED]
        holds = claims.held_by_waiting(connection, going)
        return [_waiting(run, self._asks[run.id, run.revision], holds) for run in found]


def _rows(connection: Connection) -> Sequence[AnyRow]:
    """Queued runs, and those that go on but have lost every host."""
    live = exists().where(host_groups.c.run_id == runs.c.id, HELD)
    r = runs.c
    columns = (r.id, r.owner, r.priority, r.queued_at, r.created_at, r.revision, r.state)
    wants = or_(r.state == RunState.QUEUED, and_(r.state.in_(GOING), ~live))
    return connection.execute(select(*columns).where(r.desired == Desired.RUN, wants)).all()


def _asked_for(
    connection: Connection, wanted: set[tuple[str, int]], known: Mapping[tuple[str, int], _Asks]
) -> Mapping[tuple[str, int], _Asks]:
    """What each run's revision asks for. A revision never changes, so each is read once."""
    asks = {key: known[key] for key in wanted if key in known}
    for run_id, number in sorted(wanted - asks.keys()):
        hosts = reads.job_spec(connection, run_id, number).hosts
        request = HostRequest(hosts.count, hosts.devices, hosts.section)
        asks[run_id, number] = _Asks(hosts.provider, request)
    return asks


def _waiting(run: AnyRow, asks: _Asks, holds: Mapping[str, Mapping[str, int]]) -> Waiting:
    return Waiting(
        run_id=run.id,
        owner=run.owner,
        provider=asks.provider,
        hosts=asks.request.hosts,
        priority=run.priority,
        queued_at=run.queued_at or run.created_at,
        holds=holds.get(run.id, {}),
    )


class Usher:
    """Wakes the runs whose turn has come: the loop itself may look at them seldom."""

    def __init__(
        self, queue: Queue, read: Engine, wakes: Wakes, leading: Callable[[], bool]
    ) -> None:
        self._queue = queue
        self._read = read
        self._wakes = wakes
        self._leading = leading
        self._nudged = asyncio.Event()
        self._called: frozenset[str] = frozenset()

    def nudge(self) -> None:
        """A commit may have made room."""
        self._nudged.set()

    async def keep(self) -> None:
        """Calls the next ones after each nudge, and looks by itself now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), LOOK_SECONDS)
            self._nudged.clear()
            try:
                await self.call()
            except Exception:
                log.exception("the line of waiting runs could not be read")
            await asyncio.sleep(FRESH_SECONDS)

    async def call(self) -> None:
        """Wakes each run once when it becomes its turn."""
        if not self._leading():
            self._called = frozenset()
            return
        admitted = await asyncio.to_thread(self._admitted)
        for run_id in sorted(admitted - self._called):
            self._wakes.hear((decision_topic(run_id), LOOP))
        self._called = admitted

    def _admitted(self) -> frozenset[str]:
        with self._read.connect() as connection:
            line = self._queue.line(connection)
        return line.admitted | line.never.keys()
