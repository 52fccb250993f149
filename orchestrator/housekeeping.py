"""What the leader does when nothing is urgent: sums histories up, and drops what is old.

Owns how often, and how much at once. Every write names the leader's token, is short, and does no
harm when it is repeated, so it may stop at any instant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from orchestrator.service import Service
from orchestrator.store import bundles, lease, retention, rollups

SUM_UP_SECONDS = 30.0
DROP_SECONDS = 3600.0
UNNAMED_BUNDLES = timedelta(days=1)  # stay so long, since a spec may be about to name them
LATELY = timedelta(days=1)  # how long after an attempt's end its agents' spools are looked for

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Housekeeper:
    """`token` answers with the lease's while this control plane leads, else None."""

    def __init__(self, service: Service, token: Callable[[], int | None]) -> None:
        self._service = service
        self._token = token
        self._dropped_at: float | None = None

    async def keep(self) -> None:
        """Goes round until cancelled."""
        while True:
            await asyncio.sleep(SUM_UP_SECONDS)
            try:
                await self.once()
            except lease.Fenced:
                log.info("somebody else leads and keeps house")
            except Exception:
                log.exception("the house could not be kept; it is tried again")

    async def once(self) -> None:
        """Sums up what is new; once an hour what was missed, and drops what is old."""
        if self._token() is None:
            return
        now, mono = self._service.clock.now(), self._service.clock.monotonic()
        drops = self._dropped_at is None or mono - self._dropped_at >= DROP_SECONDS
        await self._sum_up(None if drops else now - LATELY)
        if drops:
            await self._drop_points(now)
            await self._drop_lines(now)
            await self._drop_bundles(now - UNNAMED_BUNDLES)
            self._dropped_at = mono

    async def _sum_up(self, since: datetime | None) -> None:
        for run_id, number in await self._read(lambda c: rollups.behind(c, since)):
            await self._all(lambda c, r=run_id, n=number: rollups.sum_up(c, r, n))

    async def _drop_points(self, now: datetime) -> None:
        days = self._service.settings.keep_points_days
        if not days:
            return
        cutoff = now - timedelta(days=days)
        for run_id, number in await self._read(lambda c: retention.old_attempts(c, cutoff)):
            await self._all(lambda c, r=run_id, n=number: retention.drop_points(c, r, n, cutoff))

    async def _drop_lines(self, now: datetime) -> None:
        settings = self._service.settings
        days, most = settings.keep_logs_days, settings.max_log_lines_per_run
        cutoff = now - timedelta(days=days) if days else None
        for run_id in await self._read(retention.log_runs):
            bound = 0
            if most:
                bound = await self._read(lambda c, r=run_id: retention.log_bound(c, r, most))
            if bound or cutoff is not None:
                await self._all(lambda c, r=run_id, b=bound: retention.drop_lines(c, r, cutoff, b))

    async def _drop_bundles(self, cutoff: datetime) -> None:
        for sha256 in await self._read(lambda c: bundles.unnamed(c, cutoff)):
            await self._all(lambda c, s=sha256: bundles.drop(c, s, cutoff))
            log.info("a bundle that no run names was deleted", sha256=sha256)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        def read() -> T:
            with self._service.read.connect() as connection:
                return work(connection)

        return await asyncio.to_thread(read)

    async def _all(self, work: Callable[[Connection], bool]) -> None:
        """One short transaction after the other, until nothing is left."""
        while await self._service.writer.run(lambda connection: self._as_leader(connection, work)):
            pass

    def _as_leader(self, connection: Connection, work: Callable[[Connection], bool]) -> bool:
        token = self._token()
        if token is None:
            raise lease.Fenced("this control plane does not lead")
        lease.check(connection, token)
        return work(connection)
