"""Since when this process has run without a gap: a stopped process hears nothing.

A control plane that was stopped, swapped out or on a suspended machine must not take its own
deafness for the silence of hosts. Nor must it take a step of its wall clock for that: what it heard
before is stamped by the clock as it was.
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
        self._since = self._wall = clock.now()
        self._beat_at = clock.monotonic()

    def since(self) -> datetime:
        """Also right after a gap or a step, before anything else has run."""
        self.beat()
        return self._since

    def beat(self) -> None:
        now, wall = self._clock.monotonic(), self._clock.now()
        passed = now - self._beat_at
        stepped = abs((wall - self._wall).total_seconds() - passed)
        if max(passed, stepped) > GAP_SECONDS:
            self._since = wall
        self._beat_at, self._wall = now, wall

    async def keep(self) -> None:
        """Beats until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(BEAT_SECONDS)
