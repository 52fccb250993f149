"""How often agents are asked to report, so that a large fleet does not drown its control plane.

Owns the count of the agents that report here. What is urgent (an exit, a phase, a checkpoint) is
sent at once whatever the pace; it holds back heartbeats and telemetry alone.
"""

from __future__ import annotations

import random
from collections import deque

from orchestrator.clock import Clock

REPORTS_PER_SECOND = 50.0
LEAST_SECONDS, MOST_SECONDS = 0.05, 55.0
WATCHED_SECONDS = 0.25
SPAN_SECONDS = 60.0
EARLIEST_SHARE = 0.6  # of the time for which a heartbeat asked to be held
GATHER_SHARE, LEAST_GATHER, MOST_GATHER = 0.025, 0.05, 0.5


class Pace:
    """Counts who reported in the last span, and in the one before: nobody is silent for longer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self._now: set[tuple[str, int]] = set()
        self._before: set[tuple[str, int]] = set()
        self._expected = 0
        self._turns: deque[list[int]] = deque()  # [second, agents let go in it], from now on

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

        Agents of a large fleet that once came together, as all do after a start, would come
        together at each turn. So each is let go in a second that is not full, the latest one there
        is; an agent that is new here, in any.
        """
        if not self.gather:
            return asked
        now, agent = self._clock.monotonic(), (group, host)
        known = agent in self._now or agent in self._before
        first, last = now + (EARLIEST_SHARE if known else 0.0) * asked, now + asked
        while self._turns and self._turns[0][0] < int(now):
            self._turns.popleft()
        while not self._turns or self._turns[-1][0] < int(last):
            self._turns.append([self._turns[-1][0] + 1 if self._turns else int(now), 0])
        begins = self._turns[0][0]
        seconds = range(int(last) - begins, int(first) - begins - 1, -1)
        fair = self._agents / max(asked, 1.0)
        free = next((n for n in seconds if self._turns[n][1] < fair), None)
        turn = self._turns[min(seconds, key=self._fullness) if free is None else free]
        turn[1] += 1
        held = turn[0] + random.random() - now  # noqa: S311
        return min(max(held, first - now), asked)

    def _fullness(self, second: int) -> int:
        return self._turns[second][1]

    @property
    def _agents(self) -> int:
        return max(len(self._now), len(self._before), self._expected)

    @property
    def seconds(self) -> float:
        """What an agent is told whose run nobody looks at."""
        return min(max(self._agents / REPORTS_PER_SECOND, LEAST_SECONDS), MOST_SECONDS)

    @property
    def gather(self) -> float:
        """Seconds that a heartbeat which nobody waits for may wait for others to be stored with it:
        most of what one costs is the price of its transaction. 0 in a small fleet."""
        wait = GATHER_SHARE * self.seconds
        return 0.0 if wait < LEAST_GATHER else min(wait, MOST_GATHER)

    def silence(self, least: float) -> float:
        """Seconds after which an agent has missed a report, not less than `least`."""
        return max(least, 1.5 * self.seconds)
