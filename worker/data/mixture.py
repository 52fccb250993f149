"""Several sources as one: which sample of which source stands at each place.

A schedule, not a draw: after n samples each source has had its exact share of n, within one sample,
for every n. It is the earliest-deadline-first order of a proportionate schedule: the j-th sample of
a source with the share w is due between floor((j - 1) / w) and ceil(j / w), and one line can always
keep all such times. Source: Baruah et al. 1996, "Proportionate progress". Must not import JAX.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.data.samples import Rows, Samples


class Schedule:
    """Repeats one turn of `sum(shares)` places, in which part i stands `shares[i]` times."""

    def __init__(self, shares: Sequence[int]) -> None:
        self._shares = tuple(shares)
        self._turn = turn(shares)
        self._ranks = np.empty(len(self._turn), np.int64)
        for part, share in enumerate(shares):
            self._ranks[self._turn == part] = np.arange(share)

    def at(self, place: int) -> tuple[int, int]:
        """The part that stands there, and how many of its own stand before."""
        turns, within = divmod(place, len(self._turn))
        part = int(self._turn[within])
        return part, turns * self._shares[part] + int(self._ranks[within])


def turn(shares: Sequence[int]) -> NDArray[np.uint8]:
    """The part at each place of one turn; all in whole numbers."""
    length = sum(shares)
    waiting = [(0, part, 1) for part, share in enumerate(shares) if share]  # released at, j
    heapq.heapify(waiting)
    released: list[tuple[int, int, int]] = []  # due before, part, j
    order = np.empty(length, np.uint8)
    for place in range(length):
        while waiting and waiting[0][0] <= place:
            _, part, number = heapq.heappop(waiting)
            due = -(-number * length // shares[part])
            heapq.heappush(released, (due, part, number))
        _, part, number = heapq.heappop(released)
        order[place] = part
        if number < shares[part]:
            heapq.heappush(waiting, (number * length // shares[part], part, number + 1))
    return order


@dataclass(frozen=True)
class Mixture:
    """The samples of each part, and whose turn it is."""

    parts: tuple[Samples, ...]
    schedule: Schedule

    @classmethod
    def of(cls, samples: Samples) -> Mixture:
        """A single source."""
        return cls((samples,), Schedule((1,)))

    def take(self, chosen: Sequence[tuple[int, int]]) -> Rows:
        """Rows by part and number, in the order asked for."""
        if len(self.parts) == 1:
            return self.parts[0].take([number for _, number in chosen])
        found = {
            part: iter(self.parts[part].take([n for p, n in chosen if p == part]))
            for part in {part for part, _ in chosen}
        }
        return np.stack([next(found[part]) for part, _ in chosen])

    def in_order(self, most: int) -> Rows | None:
        """The first samples without a shuffle, up to `most`; ends where a part does."""
        chosen: list[tuple[int, int]] = []
        for place in range(most):
            part, number = self.schedule.at(place)
            if number >= len(self.parts[part]):
                break
            chosen.append((part, number))
        return self.take(chosen) if chosen else None
