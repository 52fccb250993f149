"""The leader's loop: look, decide, commit, carry out, wait.

Owns when a run is looked at again. Wake-ups make that sooner; without any, each active run is
looked at every `IDLE_SECONDS`. One run's failing decision never stops the others'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from orchestrator.execute import Executor
from orchestrator.leading import Leadership
from orchestrator.probing import Prober
from orchestrator.providers.calls import ProviderCalls
from orchestrator.queueing import Usher, wants_hosts
from orchestrator.reconcile.plan import MakeGroup, Plan
from orchestrator.reconcile.rules import reconcile as rules
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.service import Service
from orchestrator.store import lease, reads, writes
from orchestrator.wakes import LOOP, decision_topic, group_topic, run_topic

log = structlog.get_logger(__name__)
IDLE_SECONDS = 2.0
SHORTEST_WAIT_SECONDS = 0.01
MAX_ROUNDS = 16
AT_ONCE = 8


@dataclass(frozen=True)
class _Look:
    """When a run was last decided about, and what makes the next decision due."""

    generation: int
    woken: int
    again_at: datetime


class Loop:
    """Decides about every active run while this control plane leads."""

    def __init__(
        self,
        service: Service,
        reconcile: Callable[[Snapshot], Plan] = rules,
        owner: str | None = None,
    ) -> None:
        self._service = service
        self._reconcile = reconcile
        self._leadership = Leadership(service, owner)
        self._calls = ProviderCalls()
        self._prober = Prober(service, self._calls, self._group_changed)
        self._executor = Executor(service, self._calls, self._prober.soon)
        self._usher = Usher(service.queue, service.read, service.wakes, lambda: self.leading)
        self._looks: dict[str, _Look] = {}
        self._groups: dict[str, str] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        service.telemetry.count_runs(service.read)

    @property
    def leading(self) -> bool:
        return self._leadership.token is not None

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set: the decision under way is finished, then the lease is released."""
        keeper = asyncio.create_task(self._leadership.keep())
        usher = asyncio.create_task(self._usher.keep())
        stopper = asyncio.create_task(self._wake_at(stop))
        try:
            while not stop.is_set():
                seen = self._service.wakes.count(LOOP)
                wait = await self._survive()
                if not stop.is_set():
                    await self._service.wakes.wait(LOOP, seen, wait)
        finally:
            for task in (keeper, usher, stopper):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self._executor.close()
            await self._prober.close()
            self._calls.close()
            await self._leadership.release()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._service.wakes.notify(LOOP)

    async def _survive(self) -> float:
        try:
            return await self._round()
        except Exception:
            log.exception("the loop could not look at its runs")
            return IDLE_SECONDS

    async def _round(self) -> float:
        """Looks at every run that is due; answers how long to wait, in seconds."""
        token = self._leadership.token
        if token is None:
            self._looks.clear()
            return IDLE_SECONDS
        active, groups = await asyncio.to_thread(self._read_active)
        self._prober.look((name, provider) for name, provider, _ in groups)
        self._groups = {name: run_id for name, _, run_id in groups}
        ids = {run.id for run in active}
        self._looks = {run_id: look for run_id, look in self._looks.items() if run_id in ids}
        due = [run for run in active if self._is_due(run)]
        await asyncio.gather(*(self._look_at(run, token) for run in due))
        self._service.telemetry.last_decision.set(self._service.clock.now().timestamp())
        return self._wait(bool(groups))

    def _read_active(self) -> tuple[list[reads.Active], list[tuple[str, str, str]]]:
        with self._service.read.connect() as connection:
            return reads.active(connection), reads.live_groups(connection)

    def _is_due(self, run: reads.Active) -> bool:
        look = self._looks.get(run.id)
        return (
            look is None
            or look.generation != run.desired_generation
            or look.woken != self._service.wakes.count(decision_topic(run.id))
            or look.again_at <= self._service.clock.now()
        )

    def _wait(self, any_groups: bool) -> float:
        now = self._service.clock.now()
        waits = [(look.again_at - now).total_seconds() for look in self._looks.values()]
        longest = self._service.settings.probe_seconds if any_groups else IDLE_SECONDS
        return max(SHORTEST_WAIT_SECONDS, min([*waits, longest]))

    def _group_changed(self, group: str) -> None:
        run_id = self._groups.get(group)
        if run_id is not None:
            self._service.wakes.notify(decision_topic(run_id), LOOP)

    async def _look_at(self, run: reads.Active, token: int) -> None:
        """Decides until nothing changes; a crash of it is this run's alone."""
        async with self._slots:
            woken = self._service.wakes.count(decision_topic(run.id))
            again = self._service.clock.now() + timedelta(seconds=IDLE_SECONDS)
            try:
                asked = await self._settle(run.id, token)
            except lease.Fenced:
                self._service.telemetry.decisions.labels("fenced").inc()
                self._leadership.lost()
                return
            except Exception:
                self._service.telemetry.decisions.labels("failed").inc()
                log.exception("decision failed", run=run.id)
                asked = None
            self._looks[run.id] = _Look(
                run.desired_generation, woken, min(again, asked) if asked else again
            )

    async def _settle(self, run_id: str, token: int) -> datetime | None:
        for _ in range(MAX_ROUNDS):
            seen = self._prober.seen(self._executor.acquiring)
            snap = await asyncio.to_thread(self._snapshot, run_id, seen)
            if snap is None:
                return None
            with self._service.telemetry.decision_seconds.time():
                plan = self._reconcile(snap)
                outcome = await self._commit(snap, plan, token)
            self._service.telemetry.decisions.labels(outcome).inc()
            if outcome != "stale":
                self._executor.start(run_id, plan.actions, token)
            if outcome == "unchanged":
                return plan.look_again_at
        log.warning("a run does not come to rest", run=run_id, rounds=MAX_ROUNDS)
        return None

    def _snapshot(self, run_id: str, seen: Mapping[str, reads.Sighting]) -> Snapshot | None:
        service = self._service
        with service.read.connect() as connection:
            snap = reads.snapshot(
                connection,
                run_id,
                service.clock.now(),
                service.installation,
                service.listening_since,
                seen,
            )
            if snap is None or not wants_hosts(snap):
                return snap
            return replace(snap, admission=service.queue.admission(connection, snap))

    async def _commit(self, snap: Snapshot, plan: Plan, token: int) -> str:
        if not plan.changes:
            return "unchanged"
        now = self._service.clock.now()
        try:
            await self._service.writer.run(
                lambda connection: writes.commit_plan(connection, snap, plan, token, now)
            )
        except writes.Stale:
            self._service.queue.changed()
            return "stale"
        self._usher.nudge()
        self._tell_waiters(snap, plan)
        return "changed"

    def _tell_waiters(self, snap: Snapshot, plan: Plan) -> None:
        """People watch the run; its agents wait for commands."""
        groups = {change.name for change in plan.changes if isinstance(change, MakeGroup)}
        if snap.group is not None:
            groups.add(snap.group.name)
        self._service.wakes.notify(run_topic(snap.run.id), *map(group_topic, groups))
