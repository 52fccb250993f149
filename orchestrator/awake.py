"""Since when this process has run without a gap: a stopped process hears nothing.

A control plane that was stopped, swapped out or on a suspended machine must not take its own
deafness for the silence of hosts.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from orchestrator.clock import Clock

GAP_SECONDS = 5.0
BEAT_SECONDS = 1.0


class Awake:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.now()
        self._beat_at = clock.monotonic()

    def since(self) -> datetime:
        """Also right after a gap, before anything else has run."""
        self.beat()
        return self._since

    def beat(self) -> None:
        now = self._clock.monotonic()
        if now - self._beat_at > GAP_SECONDS:
            self._since = self._clock.now()
        self._beat_at = now

    async def keep(self) -> None:
        """Beats until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(BEAT_SECONDS)
