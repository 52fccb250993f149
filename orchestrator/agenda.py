"""Which run is looked at next, and when.

Owns the order: what was woken comes first, in the order of its waking, then what is due by time.
Times are seconds on a steady clock. Must not import asyncio, the store or a provider.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping


class Agenda:
    """Every run is known with the generation of its wish; a newer one wakes it."""

    def __init__(self) -> None:
        self._generations: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._woken: dict[str, None] = {}  # a set in order of arrival

    def __len__(self) -> int:
        return len(self._generations)

    def keep(self, active: Mapping[str, int], now: float) -> None:
        """These runs and no others; new ones are due at once, those with a newer wish too."""
        for run_id in self._generations.keys() - active.keys():
            self._due.pop(run_id, None)
            self._woken.pop(run_id, None)
        for run_id, generation in active.items():
            known = self._generations.get(run_id)
            if known is None:
                self.again(run_id, now)
            elif known != generation:
                self._woken[run_id] = None
        self._generations = dict(active)

    def wake(self, run_ids: Iterable[str]) -> None:
        """Something happened to these; one that is not known is looked at once all the same."""
        self._woken.update(dict.fromkeys(run_ids))

    def again(self, run_id: str, at: float) -> None:
        """Look at it at this time, whatever was planned before."""
        self._due[run_id] = at
        heapq.heappush(self._heap, (at, run_id))

    def by(self, run_id: str, at: float, grain: float) -> None:
        """Look at it at this time or sooner; with a `grain` up to that much later, with others."""
        at += -at % grain if grain else 0.0
        if run_id in self._generations and self._due.get(run_id, math.inf) > at:
            self.again(run_id, at)

    def looked(self, run_id: str, again_at: float, grain: float = 0.0) -> None:
        """Unlike `again`, plans nothing for a run that is not on the list.

        With a `grain`, in seconds, up to that much later, together with others.
        """
        if run_id in self._generations:
            self.again(run_id, again_at + (-again_at % grain if grain else 0.0))

    def pop(self, now: float, limit: int, not_before: float = 0.0) -> list[str]:
        """The next runs to look at, at most `limit`; plan each again once it was looked at.

        Those that nothing woke are not looked at `not_before` this time.
        """
        found = list(itertools.islice(self._woken, limit))
        for run_id in found:
            del self._woken[run_id]
            self._due.pop(run_id, None)
        while len(found) < limit and (at := self._next(not_before)) is not None and at <= now:
            _, run_id = heapq.heappop(self._heap)
            del self._due[run_id]
            found.append(run_id)
        return found

    def next_at(self, now: float, not_before: float = 0.0) -> float | None:
        """When `pop` has something to give; None while nothing is planned."""
        return now if self._woken else self._next(not_before)

    def _next(self, not_before: float) -> float | None:
        while self._heap:
            at, run_id = self._heap[0]
            if self._due.get(run_id) == at:
                return max(at, not_before)
            heapq.heappop(self._heap)  # it was planned anew, or is gone
        return None
