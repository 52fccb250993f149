"""The leader's loop: look, decide, commit, carry out, wait.

Owns when a run is looked at again. What happens to a run wakes it. Without that each active run is
looked at when its last decision asked for it, and in any case every `LEAST_IDLE_SECONDS` or, in a
large fleet, `LOOKS_PER_SECOND` runs a second in turn: a lost wake-up costs that much time. Hosts
that fall silent, or are heard of again, wake their runs. One run's failing decision never stops
the others'.

Where agents report faster than their reports can be stored, as all of them do after a start, looks
that nothing asked for step back, and a report that waits here is not taken for a host's silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection

from orchestrator.agenda import Agenda
from orchestrator.awake import Awake
from orchestrator.execute import Executor
from orchestrator.housekeeping import Housekeeper
from orchestrator.leading import Leadership
from orchestrator.prices import price_per_hour
from orchestrator.probing import Prober
from orchestrator.providers.base import Provider
from orchestrator.providers.calls import ProviderCalls
from orchestrator.queueing import Usher, wants_hosts
from orchestrator.reconcile.plan import MakeGroup, Plan
from orchestrator.reconcile.rules import reconcile as rules
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import HostGroup
from orchestrator.service import Service
from orchestrator.state import AttemptState, GroupState
from orchestrator.store import lease, looks, reads, writes
from orchestrator.sweep import Sweeper
from orchestrator.wakes import LOOP, decision_topic, group_topic, run_topic

log = structlog.get_logger(__name__)
LEAST_IDLE_SECONDS, MOST_IDLE_SECONDS = 2.0, 600.0
LOOKS_PER_SECOND = 10.0
MOST_LOOKS_PER_SECOND = 20.0  # at runs that do well, though their last decisions ask for more
TOGETHER_SHARE = 0.01  # of a turn: looks that fall into it are made together, which costs less
SILENT_SHARE = 0.8  # of the time after which a host may count as lost
FAILED_SECONDS = 2.0
LIST_SECONDS = 2.0
LIST_SHARE = 0.02  # of the time, at most, goes into listing the active runs unasked
SHORTEST_WAIT_SECONDS = 0.01
MAX_ROUNDS = 16
AT_ONCE = 8
CROWDED_SECONDS = 0.5  # that reports wait to be stored
CROWDED_TURN_SECONDS = 1.0  # between two batches of looks that nothing asked for, meanwhile
BATCH = 32  # woken runs go before the rest of a long list


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
        self._sweeper = Sweeper(service, self._calls, lambda: self._leadership.token)
        self._awake = Awake(service.clock)
        self._housekeeper = Housekeeper(service, lambda: self._leadership.token)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._led_under: int | None = None
        self._probing_since = service.clock.now()
        self._announcing: set[asyncio.Task[None]] = set()
        self._forget()
        self._tell()

    def _tell(self) -> None:
        service, told = self._service, self._service.telemetry
        told.count_runs(service.read)
        told.tell_ledgers(service.read, service.clock)
        told.tell_vitals(service.read, service.clock, self._silence)
        told.tell_hosts(service.read, service.queue, service.providers)
        told.write_lag.set_function(lambda: service.writer.lag)
        told.leading.set_function(lambda: float(self.leading))
        service.writer.on_commit = told.commit_seconds.observe

    @property
    def leading(self) -> bool:
        return self._leadership.token is not None

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set: the decision under way is finished, then the lease is released."""
        beside = (
            self._leadership.keep(),
            self._awake.keep(),
            self._prober.run(),
            self._usher.keep(),
            self._sweeper.keep(),
            self._housekeeper.keep(),
        )
        tasks = [asyncio.create_task(work) for work in (*beside, self._wake_at(stop))]
        try:
            while not stop.is_set():
                seen = self._service.wakes.count(LOOP)
                wait = await self._survive()
                if not stop.is_set():
                    await self._service.wakes.wait(LOOP, seen, wait)
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self._executor.close()
            await self._prober.close()
            await self._sweeper.close()
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
            return FAILED_SECONDS

    def _announce(self) -> None:
        """Agents that talked to a former leader, which may be dead, learn where this one is."""
        for provider in self._service.providers.values():
            task = asyncio.create_task(self._announce_to(provider))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def _announce_to(self, provider: Provider) -> None:
        try:
            await self._calls.run(provider.announce, self._service.settings.url)
        except Exception:
            log.exception("agents could not be told of this leader", provider=provider.name)

    # ---- which runs ------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Everything is due for somebody who has just begun to lead."""
        self._agenda = Agenda()
        self._prober.forget()
        self._groups: dict[str, str] = {}
        self._groups_of: dict[str, set[str]] = defaultdict(set)
        self._silent: set[str] = set()
        self._list_at = self._list_not_before = -float("inf")
        self._turns_from = 0.0

    async def _round(self) -> float:
        """Looks at the runs whose turn it is; answers how long to wait, in seconds."""
        token = self._leadership.token
        woken = self._service.wakes.to_decide()
        if token != self._led_under:
            self._forget()
            self._led_under = token
            self._probing_since = self._service.clock.now()
            if token is not None:
                self._announce()
        if token is None:
            return LEAST_IDLE_SECONDS
        self._agenda.wake(woken.runs)
        if woken.any_run:
            self._list_at = min(self._list_at, self._list_not_before)
        if self._list_at <= self._monotonic():
            await self._list()
        due = self._agenda.pop(self._monotonic(), BATCH, self._turns_from)
        self._turns_from = self._next_turns()
        if len(due) > 1:
            due = await self._glance(due)
        await asyncio.gather(*(self._look_at(run_id, token) for run_id in due))
        self._service.telemetry.last_decision.set(self._service.clock.now().timestamp())
        return self._wait()

    async def _list(self) -> None:
        """Reads which runs are active, whose wish is new, and which groups live."""
        began = self._monotonic()
        active, groups, silent = await asyncio.to_thread(self._read_active)
        now = self._monotonic()
        self._agenda.keep({run.id: run.desired_generation for run in active}, now)
        self._agenda.wake(sorted(silent ^ self._silent))
        self._silent = silent
        self._service.pace.expect(len(groups))
        self._prober.keep((name, provider) for name, provider, _ in groups)
        self._groups = {name: run_id for name, _, run_id in groups}
        self._groups_of = defaultdict(set)
        for name, _, run_id in groups:
            self._groups_of[run_id].add(name)
        self._list_at = now + max(LIST_SECONDS, (now - began) / LIST_SHARE)
        self._list_not_before = now + 4 * (now - began)

    def _read_active(self) -> tuple[list[reads.Active], list[tuple[str, str, str]], set[str]]:
        with self._service.read.connect() as connection:
            now = self._service.clock.now()
            return (
                reads.active(connection, now),
                reads.live_groups(connection),
                reads.silent_runs(connection, now - SILENT_SHARE * self._silence()),
            )

    def _next_turns(self) -> float:
        """From when on runs may be looked at that nothing woke."""
        if self._service.writer.lag < CROWDED_SECONDS:
            return 0.0
        now = self._monotonic()
        return self._turns_from if self._turns_from > now else now + CROWDED_TURN_SECONDS

    def _wait(self) -> float:
        now = self._monotonic()
        due = self._agenda.next_at(now, self._turns_from)
        until = self._list_at if due is None else min(due, self._list_at)
        return max(SHORTEST_WAIT_SECONDS, until - now)

    def _monotonic(self) -> float:
        return self._service.clock.monotonic()

    def _group_changed(self, group: str, news: bool) -> None:
        """What is no news waits for others, with which a look costs less."""
        run_id = self._groups.get(group)
        if run_id is None:
            return
        if not news:
            self._agenda.by(run_id, self._monotonic(), TOGETHER_SHARE * self._turn())
        self._service.wakes.hear((decision_topic(run_id), LOOP) if news else (LOOP,))

    # ---- one run ---------------------------------------------------------------------------------

    async def _glance(self, due: list[str]) -> list[str]:
        """Looks at them together; answers those that something is to be done about.

        They are looked at once more, each just before its decision.
        """
        left = dict.fromkeys(due)
        try:
            for snap in await asyncio.to_thread(self._snapshots, due, self._seen(*due)):
                plan = self._reconcile(snap)
                if not plan.changes and not plan.actions:
                    self._service.telemetry.decisions.labels("unchanged").inc()
                    self._look_again(snap.run.id, self._rest(snap, plan.look_again_at))
                    del left[snap.run.id]
        except Exception as error:  # noqa: BLE001 - the run at fault fails again by itself
            reason = type(error).__name__
            log.warning("runs are looked at one by one", runs=len(left), reason=reason)
        return list(left)

    async def _look_at(self, run_id: str, token: int) -> None:
        """Decides until nothing changes; a crash of it is this run's alone."""
        async with self._slots:
            try:
                asked = await self._settle(run_id, token)
            except lease.Fenced as error:
                self._service.telemetry.decisions.labels("fenced").inc()
                log.warning("fenced: decision refused", run=run_id, reason=str(error))
                self._leadership.lost(token)
                return
            except Exception:
                self._service.telemetry.decisions.labels("failed").inc()
                log.exception("decision failed", run=run_id)
                asked = self._service.clock.now() + timedelta(seconds=FAILED_SECONDS)
            self._look_again(run_id, asked)

    def _look_again(self, run_id: str, asked: datetime | None) -> None:
        """When it was `asked` for, or in the run's turn."""
        idle = max(LEAST_IDLE_SECONDS, len(self._agenda) / LOOKS_PER_SECOND)
        wait = min(idle, MOST_IDLE_SECONDS) * random.uniform(0.7, 1.0)  # noqa: S311
        if asked is not None:
            wait = min(wait, (asked - self._service.clock.now()).total_seconds())
        grain = TOGETHER_SHARE * self._turn() if wait >= self._turn() / 2 else 0.0
        self._agenda.looked(run_id, self._monotonic() + wait, grain)

    def _turn(self) -> float:
        """Seconds in which all runs that do well may be looked at once."""
        return len(self._agenda) / MOST_LOOKS_PER_SECOND

    async def _settle(self, run_id: str, token: int) -> datetime | None:
        for _ in range(MAX_ROUNDS):
            found = await asyncio.to_thread(self._snapshots, [run_id], self._seen(run_id))
            if not found:
                return None
            [snap] = found
            with self._service.telemetry.decision_seconds.time():
                plan = self._reconcile(snap)
                outcome = await self._commit(snap, plan, token)
            self._service.telemetry.decisions.labels(outcome).inc()
            if outcome != "stale":
                self._start(run_id, plan, token)
            if outcome == "unchanged":
                return self._rest(snap, plan.look_again_at)
        log.warning("a run does not come to rest", run=run_id, rounds=MAX_ROUNDS)
        return self._service.clock.now()

    def _start(self, run_id: str, plan: Plan, token: int) -> None:
        for action in plan.actions:
            self._groups[action.group] = run_id
            self._groups_of[run_id].add(action.group)
        self._executor.start(run_id, plan.actions, token)

    def _rest(self, snap: Snapshot, asked: datetime | None) -> datetime | None:
        """When to look again at a run that nothing is to be changed of now.

        Hosts that come, go or start something are probed more often than in their turn.
        """
        group = snap.group
        if group is None or group.state is GroupState.GONE:
            return asked
        if not self._does_well(snap, group):
            self._prober.attend(group.name)
            return asked
        return asked and max(asked, snap.now + timedelta(seconds=self._turn()))

    def _does_well(self, snap: Snapshot, group: HostGroup) -> bool:
        """It trains, and every host was heard of in time."""
        limit = SILENT_SHARE * self._silence()
        seen = (host.last_seen_at for host in snap.hosts)
        return (
            group.state is GroupState.READY
            and snap.attempt is not None
            and snap.attempt.state is AttemptState.RUNNING
            and all(at is not None and snap.now - at < limit for at in seen)
        )

    def _silence(self) -> timedelta:
        """After how long a host is silent: agents of a large fleet are asked to report less, and
        what they said may still wait to be stored."""
        service = self._service
        missed = service.pace.silence(service.settings.host_lost_seconds)
        return timedelta(seconds=missed + service.writer.lag)

    def _seen(self, *run_ids: str) -> Mapping[str, looks.Sighting]:
        groups = [group for run_id in run_ids for group in self._groups_of.get(run_id, ())]
        return self._prober.seen(groups, self._executor.acquiring)

    def _snapshots(
        self, run_ids: Sequence[str], seen: Mapping[str, looks.Sighting]
    ) -> list[Snapshot]:
        service = self._service
        with service.read.connect() as connection:
            found = looks.snapshots(
                connection,
                run_ids,
                service.clock.now(),
                service.installation,
                service.listening_since,
                seen,
                self._beside(),
            )
            return [self._admitted(connection, snap) for snap in found.values()]

    def _admitted(self, connection: Connection, snap: Snapshot) -> Snapshot:
        """With the run's turn, where that matters."""
        if not wants_hosts(snap):
            return snap
        return replace(snap, admission=self._service.queue.admission(connection, snap))

    def _beside(self) -> looks.Beside:
        service = self._service
        seconds = {name: one.hold_seconds for name, one in service.providers.items()}
        return looks.Beside(
            awake_since=self._awake.since(),
            probing_since=self._probing_since,
            host_lost_after=self._silence(),
            provision_within=timedelta(seconds=service.settings.provision_seconds),
            holds={name: timedelta(seconds=hold) for name, hold in seconds.items() if hold},
            price_per_hour=lambda job: price_per_hour(job, service.settings),
        )

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
