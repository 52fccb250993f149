"""How often agents are asked to report, so that a large fleet does not drown its control plane.

Owns the count of the agents that report here. What is urgent (an exit, a phase, a checkpoint) is
sent at once whatever the pace; it holds back heartbeats and telemetry alone.
"""

from __future__ import annotations

import random

from orchestrator.clock import Clock

REPORTS_PER_SECOND = 50.0
LEAST_SECONDS, MOST_SECONDS = 0.05, 55.0
WATCHED_SECONDS = 0.25
SPAN_SECONDS = 60.0
GATHER_SHARE, LEAST_GATHER, MOST_GATHER = 0.025, 0.05, 0.5


class Pace:
    """Counts who reported in the last span, and in the one before: nobody is silent for longer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self._now: set[tuple[str, int]] = set()
        self._before: set[tuple[str, int]] = set()
        self._expected = 0

    def expect(self, agents: int) -> None:
        """So many may report, by the database: after a start they all come at once."""
        self._expected = agents

    def next_report(self, group: str, host: int, watched: bool) -> float:
        """Seconds until this agent's next telemetry; `watched` when somebody looks at its run."""
        if self._clock.monotonic() - self._began > SPAN_SECONDS:
            self._began = self._clock.monotonic()
            self._before, self._now = self._now, set()
        self._now.add((group, host))
        return min(self.seconds, WATCHED_SECONDS) if watched else self.seconds

    def patience(self, group: str, host: int, asked: float) -> float:
        """Seconds that a heartbeat is held, of the `asked` ones.

        After a start of this control plane all agents come at once, and would again at each turn:
        in a large fleet the first heartbeat of each is held for some part of the time.
        """
        agent = (group, host)
        if not self.gather or agent in self._now or agent in self._before:
            return asked
        return asked * random.random()  # noqa: S311

    @property
    def seconds(self) -> float:
        """What an agent is told whose run nobody looks at."""
        agents = max(len(self._now), len(self._before), self._expected)
        return min(max(agents / REPORTS_PER_SECOND, LEAST_SECONDS), MOST_SECONDS)

    @property
    def gather(self) -> float:
        """Seconds that a heartbeat which nobody waits for may wait for others to be stored with it:
        most of what one costs is the price of its transaction. 0 in a small fleet."""
        wait = GATHER_SHARE * self.seconds
        return 0.0 if wait < LEAST_GATHER else min(wait, MOST_GATHER)

    def silence(self, least: float) -> float:
        """Seconds after which an agent has missed a report, not less than `least`."""
        return max(least, 1.5 * self.seconds)
