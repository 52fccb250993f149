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
    """Takes or renews the lease three times in its lifetime.

    Every write of a decision checks the token in the database; here it is also dropped by the time
    alone, so that a process that was stopped does not begin anything new as a former leader.
    """

    def __init__(self, service: Service, owner: str | None = None) -> None:
        self._token: int | None = None
        self._until = 0.0
        self._service = service
        self._owner = owner or owner_name()
        self._ttl = timedelta(seconds=service.settings.lease_ttl_seconds)

    @property
    def token(self) -> int | None:
        """The lease's while this control plane leads, None otherwise."""
        return self._token if self._service.clock.monotonic() < self._until else None

    def lost(self, token: int) -> None:
        """A write under this token was fenced: somebody else leads."""
        if self._token == token:
            self._token = None

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await self._renew()
            await asyncio.sleep(self._ttl.total_seconds() / 3)

    async def _renew(self) -> None:
        asked = self._service.clock.monotonic()
        try:
            token = await self._service.writer.run(
                lambda connection: lease.acquire(connection, lease.LEADER, self._owner, self._ttl)
            )
        except Exception:
            log.exception("the leader lease could not be renewed")
            return  # the one that was taken lasts to its end
        before, self._token = self._token, token
        self._until = asked + self._ttl.total_seconds()
        if token != before:
            log.info("leading" if token else "not leading", token=token, owner=self._owner)
            self._service.wakes.hear((LOOP,))

    async def release(self) -> None:
        """Lets the next one lead at once; without it, the lease runs out by itself."""
        self._token = None
        try:
            await self._service.writer.run(
                lambda connection: lease.release(connection, lease.LEADER, self._owner)
            )
        except Exception:
            log.exception("the leader lease could not be released")
            return
        self._service.wakes.notify(LOOP)
