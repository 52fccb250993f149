"""The sweep: what providers hold in this installation's name is compared with what runs want.

Owns when providers are asked, and the fence around giving an orphan back: the decision is committed
under the lease, and lease and rows are looked at again just before the provider is called. Runs in
the leader all the time; a provider that fails or hangs delays nobody but its own sweep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from orchestrator.fenced import call_fenced
from orchestrator.providers.base import Owned, Provider
from orchestrator.providers.calls import ProviderCalls
from orchestrator.service import Service
from orchestrator.settings import Settings
from orchestrator.store import lease, orphans

SWEEP = "sweep"  # the topic that wakes the sweep
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Terms:
    """`price` answers what a device of a provider costs an hour, or None."""

    every_seconds: float
    grace: timedelta
    price: Callable[[str], float | None]

    @classmethod
    def of(cls, settings: Settings) -> Terms:
        return cls(
            every_seconds=settings.sweep_seconds,
            grace=timedelta(seconds=settings.orphan_grace_seconds),
            price=settings.prices.get,
        )


class Sweeper:
    """`token` answers the lease's, while this control plane leads."""

    def __init__(
        self,
        service: Service,
        calls: ProviderCalls,
        token: Callable[[], int | None],
        terms: Terms | None = None,
    ) -> None:
        self._service = service
        self._calls = calls
        self._token = token
        self._terms = terms or Terms.of(service.settings)
        service.telemetry.count_orphans(service.read, self._terms.grace)
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def keep(self) -> None:
        """Sweeps for as long as this control plane leads, until cancelled."""
        wakes = self._service.wakes
        while True:
            seen = wakes.count(SWEEP)
            self.start()
            await wakes.wait(SWEEP, seen, self._terms.every_seconds)

    def start(self) -> None:
        """Begins a sweep of each provider whose last one is over."""
        token = self._token()
        if token is None:
            return
        for name, provider in self._service.providers.items():
            under_way = self._under_way.get(name)
            if under_way is None or under_way.done():
                self._under_way[name] = asyncio.create_task(self._survive(provider, token))

    async def close(self) -> None:
        """Waits a moment for what is under way."""
        tasks = [task for task in self._under_way.values() if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    async def _survive(self, provider: Provider, token: int) -> None:
        try:
            await self.sweep(provider, token)
        except lease.Fenced as error:
            log.info("sweep left to the new leader", provider=provider.name, reason=str(error))
        except Exception as error:
            self._service.telemetry.provider_failures.labels(provider.name, "owned").inc()
            log.exception("sweep failed", provider=provider.name, words=str(error))

    async def sweep(self, provider: Provider, token: int) -> None:
        """Lists, compares, gives back what is due. Raises `lease.Fenced` and what providers do."""
        owned = await self._calls.run(provider.owned)
        listing = orphans.Listing(provider.name, owned, self._prices(provider.name, owned))
        service, now = self._service, self._service.clock.now()
        due = await service.writer.run(
            lambda connection: orphans.sweep(
                connection, listing, service.installation, self._terms.grace, token, now
            )
        )
        for name in due:
            await self._give_back(provider, name, token)

    def _prices(self, provider: str, owned: Sequence[Owned]) -> dict[str, float]:
        """What each group costs an hour; of what the provider can not tell, there is one."""
        price = self._terms.price(provider)
        if price is None:
            return {}
        return {one.name: price * (one.hosts or 1) * (one.devices or 1) for one in owned}

    async def _give_back(self, provider: Provider, name: str, token: int) -> None:
        """One that fails is left for the next sweep, and keeps no other."""
        try:
            await call_fenced(
                self._service,
                self._calls,
                lambda connection: orphans.allow(connection, provider.name, name, token),
                lambda: provider.release(name),
            )
        except orphans.NotAnOrphan as error:
            log.info("orphan left alone", name=name, reason=str(error))
        except lease.Fenced:
            raise
        except Exception as error:
            self._service.telemetry.provider_failures.labels(provider.name, "reap").inc()
            log.exception("orphan could not be given back", name=name, words=str(error))
        else:
            log.warning("orphan given back", name=name, provider=provider.name)
