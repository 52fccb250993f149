"""What the providers see of each live group, kept fresh off the event loop.

Owns when a group is probed again.

A slow provider delays only its own groups: each probe is a thread of its own, at most one a group,
and a decision uses the newest that has come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from orchestrator.providers.base import GroupProbe, Provider, ProviderError
from orchestrator.providers.calls import ProviderCalls
from orchestrator.reconcile.plan import AcquireHosts, Action
from orchestrator.service import Service
from orchestrator.store.looks import Sighting

log = structlog.get_logger(__name__)
PROBES_PER_SECOND = 20.0
HOT_PROBES_PER_SECOND = 100.0
HOT_SECONDS = 10.0
IDLE_SECONDS = 5.0
LEAST_SECONDS = 0.005


@dataclass(frozen=True)
class Look:
    """A probe that begins: when, and how often the group's hosts had been asked for by then."""

    group: str
    began: datetime
    asked: int


class Sightings:
    """The newest probe of each live group.

    That nothing of a group exists is believed only while nobody is asking for its hosts, and if
    the probe began after the last time that somebody did: a slow call may make them just after the
    probe, and a group that counts as gone is never given back again.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Sighting] = {}
        self._asked: dict[str, int] = {}
        self._forgotten = 0

    def begin(self, group: str, now: datetime) -> Look:
        """Counted, not timed: a clock may be set back between a call and the probe's answer."""
        return Look(group, now, self._times(group))

    def note(self, look: Look, probe: GroupProbe) -> bool:
        """Whether the group is seen otherwise than before."""
        if not probe.exists and look.asked != self._times(look.group):
            return False
        before = self._seen.get(look.group)
        alive_at = {} if before is None else dict(before.alive_at)
        for host in probe.hosts:
            if host.agent_alive or host.trainer_alive:
                alive_at[host.index] = look.began
        self._seen[look.group] = Sighting(look.began, probe, alive_at)
        return before is None or before.probe != probe

    def asked(self, group: str) -> None:
        """Its hosts have just been asked for, whatever came of it."""
        self._asked[group] = self._asked.get(group, 0) + 1
        self._seen = dict(self.believed((group,)))

    def _times(self, group: str) -> int:
        return self._forgotten + self._asked.get(group, 0)

    def forget(self) -> None:
        """Another control plane may have led meanwhile, and may have asked for any hosts."""
        self._seen = {}
        self._forgotten += 1

    def keep(self, live: Container[str]) -> None:
        """Forgets every group that is not among these."""
        self._seen = {group: seen for group, seen in self._seen.items() if group in live}
        self._asked = {group: times for group, times in self._asked.items() if group in live}

    def believed(
        self, acquiring: Container[str], groups: Iterable[str] | None = None
    ) -> Mapping[str, Sighting]:
        """What a decision may rest on; the hosts of the groups in `acquiring` are asked for now.

        Of all groups unless some are named.
        """
        return {
            group: seen
            for group in (self._seen if groups is None else groups)
            if (seen := self._seen.get(group)) is not None
            and (seen.probe.exists or group not in acquiring)
        }


class Prober:
    """`changed` is called, on the event loop, with a group's name when its probe says other than
    before, and with whether that is news: that a group is well which was never probed is none.

    A group that something is happening to is probed every `probe_seconds`; the others take turns,
    so that a large fleet costs no more than `PROBES_PER_SECOND`. Where something happens to very
    many at once, as when a busy control plane hears its agents late, those take turns too: probes
    of all of them would keep it from hearing the rest.
    """

    def __init__(
        self, service: Service, calls: ProviderCalls, changed: Callable[[str, bool], None]
    ) -> None:
        self._service = service
        self._calls = calls
        self._changed = changed
        self._sightings = Sightings()
        self._providers: dict[str, str] = {}
        self._pace = service.settings.probe_seconds
        self._hot: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._sooner = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def seen(self, groups: Iterable[str], acquiring: Container[str]) -> Mapping[str, Sighting]:
        """What a decision may rest on; the hosts of the groups in `acquiring` are asked for now."""
        return self._sightings.believed(acquiring, groups)

    def forget(self) -> None:
        """What was seen so far is too old to decide by."""
        self._sightings.forget()

    def soon(self, action: Action) -> None:
        """Something was just done to the group: what was seen of it before is no longer true."""
        if isinstance(action, AcquireHosts):
            self._sightings.asked(action.group)
        self._providers[action.group] = action.provider
        self.attend(action.group)

    def attend(self, group: str) -> None:
        """Something is happening to the group: probe it now, and often for a while."""
        if group in self._providers:
            now = self._service.clock.monotonic()
            self._hot[group] = now + HOT_SECONDS
            pace = self._hot_pace()
            crowded = pace > self._service.settings.probe_seconds
            self._plan(group, max(now, self._began.get(group, now) + pace) if crowded else now)

    def _hot_pace(self) -> float:
        return max(self._service.settings.probe_seconds, len(self._hot) / HOT_PROBES_PER_SECOND)

    def keep(self, live: Iterable[tuple[str, str]]) -> None:
        """Probes these (group, provider) from now on, and forgets all others."""
        self._providers = dict(live)
        self._sightings.keep(self._providers)
        now = self._service.clock.monotonic()
        self._hot = {
            group: until
            for group, until in self._hot.items()
            if group in self._providers and until > now
        }
        self._began = {group: at for group, at in self._began.items() if group in self._providers}
        self._due = {group: at for group, at in self._due.items() if group in self._providers}
        self._pace = max(
            self._service.settings.probe_seconds, len(self._providers) / PROBES_PER_SECOND
        )
        for turn, group in enumerate(self._providers.keys() - self._due.keys()):
            if group not in self._tasks:
                self._plan(group, now + turn / PROBES_PER_SECOND)

    async def run(self) -> None:
        """Probes what is due, until cancelled."""
        while True:
            self._sooner.clear()
            wait = self._start_due() - self._service.clock.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sooner.wait(), max(wait, LEAST_SECONDS))

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=1.0)

    def _plan(self, group: str, at: float) -> None:
        """A probe under way plans the next one itself, unless somebody wants it sooner."""
        if self._due.get(group, math.inf) > at:
            self._due[group] = at
            heapq.heappush(self._heap, (at, group))
            self._sooner.set()

    def _start_due(self) -> float:
        """Starts the probes that are due; answers when the next one is."""
        now = self._service.clock.monotonic()
        while self._heap:
            at, group = self._heap[0]
            if at > now:
                return at
            heapq.heappop(self._heap)
            if self._due.get(group) == at and group not in self._tasks:
                del self._due[group]
                self._start(group)
        return now + IDLE_SECONDS

    def _start(self, group: str) -> None:
        provider = self._service.providers.get(self._providers[group])
        if provider is not None:
            self._tasks[group] = asyncio.create_task(self._probe(group, provider))

    async def _probe(self, group: str, provider: Provider) -> None:
        start = self._began[group] = self._service.clock.monotonic()
        look = self._sightings.begin(group, self._service.clock.now())
        try:
            self._note(look, await self._calls.run(provider.probe, group))
        except ProviderError as error:
            log.warning("probe failed", group=group, words=str(error))
        except Exception:
            log.exception("probe failed", group=group)
        finally:
            del self._tasks[group]
            self._plan_next(group, start)

    def _plan_next(self, group: str, start: float) -> None:
        if group not in self._providers:
            return
        hot = self._hot.get(group, 0.0) > start
        pace = self._hot_pace() if hot else self._pace
        wanted = self._due.pop(group, math.inf)  # asked for while the probe was under way
        self._plan(group, min(wanted, start + pace))

    def _note(self, look: Look, probe: GroupProbe) -> None:
        first = not self._sightings.believed((), (look.group,))
        if self._sightings.note(look, probe):
            self._changed(look.group, not (first and probe.well))
