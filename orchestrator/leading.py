"""Holds the leader lease for one control plane: takes it, renews it, notices its loss."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from datetime import timedelta

import structlog

from orchestrator.service import Service
from orchestrator.store import lease
from orchestrator.wakes import LOOP

log = structlog.get_logger(__name__)


def owner_name() -> str:
    """This process, in words that fit the lease's column and that no other process has."""
    return f"{socket.gethostname()[:30]}:{os.getpid()}:{secrets.token_hex(4)}"


class Leadership:
    """`token` is the lease's while this control plane leads, and None otherwise.

    It may be wrong for a moment; every write of a decision checks it in the database.
    """

    def __init__(self, service: Service, owner: str | None = None) -> None:
        self.token: int | None = None
        self._service = service
        self._owner = owner or owner_name()
        self._ttl = timedelta(seconds=service.settings.lease_ttl_seconds)

    def lost(self) -> None:
        """A write was fenced: somebody else leads."""
        self.token = None

    async def keep(self) -> None:
        """Takes or renews the lease three times in its lifetime, until cancelled."""
        while True:
            await self._renew()
            await asyncio.sleep(self._ttl.total_seconds() / 3)

    async def _renew(self) -> None:
        try:
            token = await self._service.writer.run(
                lambda connection: lease.acquire(connection, lease.LEADER, self._owner, self._ttl)
            )
        except Exception:
            log.exception("the leader lease could not be renewed")
            token = None
        if token != self.token:
            log.info("leading" if token else "not leading", token=token, owner=self._owner)
            self.token = token
            self._service.wakes.notify(LOOP)

    async def release(self) -> None:
        """Lets the next one lead at once; without it, the lease runs out by itself."""
        self.token = None
        try:
            await self._service.writer.run(
                lambda connection: lease.release(connection, lease.LEADER, self._owner)
            )
        except Exception:
            log.exception("the leader lease could not be released")
