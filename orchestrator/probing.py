"""What the providers see of each live group, kept fresh off the event loop.

A slow provider delays only its own groups: each probe is a thread of its own, at most one a group,
and a decision uses the newest that has come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping
from datetime import datetime

import structlog

from orchestrator.providers.base import GroupProbe, Provider, ProviderError
from orchestrator.providers.calls import ProviderCalls
from orchestrator.reconcile.plan import AcquireHosts, Action
from orchestrator.service import Service
from orchestrator.store.reads import Sighting

log = structlog.get_logger(__name__)


class Sightings:
    """The newest probe of each live group.

    That nothing of a group exists is believed only while nobody is asking for its hosts, and if
    the probe began after the last time that somebody did: a slow call may make them just after the
    probe, and a group that counts as gone is never given back again.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Sighting] = {}
        self._asked: dict[str, datetime] = {}

    def note(self, group: str, began: datetime, probe: GroupProbe) -> bool:
        """Whether the group is seen otherwise than before."""
        asked = self._asked.get(group)
        if not probe.exists and asked is not None and began <= asked:
            return False
        before = self._seen.get(group)
        self._seen[group] = Sighting(began, probe)
        return before is None or before.probe != probe

    def asked(self, group: str, now: datetime) -> None:
        """Its hosts have just been asked for, whatever came of it."""
        self._asked[group] = now
        self._seen = dict(self.believed((group,)))

    def keep(self, live: Container[str]) -> None:
        """Forgets every group that is not among these."""
        self._seen = {group: seen for group, seen in self._seen.items() if group in live}
        self._asked = {group: at for group, at in self._asked.items() if group in live}

    def believed(self, acquiring: Container[str]) -> Mapping[str, Sighting]:
        """What a decision may rest on; the hosts of the groups in `acquiring` are asked for now."""
        return {
            group: seen
            for group, seen in self._seen.items()
            if seen.probe.exists or group not in acquiring
        }


class Prober:
    """`changed` is called, on the event loop, with a group's name when its probe says other than
    before."""

    def __init__(
        self, service: Service, calls: ProviderCalls, changed: Callable[[str], None]
    ) -> None:
        self._service = service
        self._calls = calls
        self._changed = changed
        self._sightings = Sightings()
        self._due: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def seen(self, acquiring: Container[str]) -> Mapping[str, Sighting]:
        """What a decision may rest on; the hosts of the groups in `acquiring` are asked for now."""
        return self._sightings.believed(acquiring)

    def soon(self, action: Action) -> None:
        """Something was just done to the group: what was seen of it before is no longer true."""
        if isinstance(action, AcquireHosts):
            self._sightings.asked(action.group, self._service.clock.now())
        self._due[action.group] = 0.0

    def look(self, live: Iterable[tuple[str, str]]) -> None:
        """Starts the probes that are due of these (group, provider), and forgets all others."""
        wanted = dict(live)
        self._sightings.keep(wanted)
        self._due = {group: due for group, due in self._due.items() if group in wanted}
        now = self._service.clock.monotonic()
        for group, name in wanted.items():
            provider = self._service.providers.get(name)
            idle = group not in self._tasks and self._due.get(group, 0.0) <= now
            if provider is not None and idle:
                self._due[group] = now + self._service.settings.probe_seconds
                self._tasks[group] = asyncio.create_task(self._probe(group, provider))

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=1.0)

    async def _probe(self, group: str, provider: Provider) -> None:
        began = self._service.clock.now()
        try:
            self._note(group, began, await self._calls.run(provider.probe, group))
        except ProviderError as error:
            log.warning("probe failed", group=group, words=str(error))
        except Exception:
            log.exception("probe failed", group=group)
        finally:
            del self._tasks[group]

    def _note(self, group: str, began: datetime, probe: GroupProbe) -> None:
        if self._sightings.note(group, began, probe):
            self._changed(group)
