"""What the providers see of each live group, kept fresh off the event loop.

A slow provider delays only its own groups: each probe is a thread of its own, at most one a group,
and a decision uses the newest that has come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import structlog

from orchestrator.providers.base import GroupProbe, Provider, ProviderError
from orchestrator.providers.calls import ProviderCalls
from orchestrator.service import Service
from orchestrator.store.reads import Sighting

log = structlog.get_logger(__name__)


class Prober:
    """`changed` is called, on the event loop, with a group's name when its probe says other than
    before."""

    def __init__(
        self, service: Service, calls: ProviderCalls, changed: Callable[[str], None]
    ) -> None:
        self._service = service
        self._calls = calls
        self._changed = changed
        self._seen: dict[str, Sighting] = {}
        self._due: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def seen(self) -> Mapping[str, Sighting]:
        return self._seen

    def soon(self, group: str) -> None:
        """Something was just done to the group: what was seen of it before is no longer true."""
        self._due[group] = 0.0

    def look(self, live: Iterable[tuple[str, str]]) -> None:
        """Starts the probes that are due of these (group, provider), and forgets all others."""
        wanted = dict(live)
        for gone in self._seen.keys() | self._due.keys():
            if gone not in wanted:
                self._seen.pop(gone, None)
                self._due.pop(gone, None)
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
        before = self._seen.get(group)
        self._seen[group] = Sighting(began, probe)
        if before is None or before.probe != probe:
            self._changed(group)
