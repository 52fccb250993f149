"""Best-fit packing: rows that each begin where a document begins, and that are full.

A row takes the longest document of the buffer that still fits, again and again; where none fits,
the shortest is cut to fill it, and what is left of that one goes on in another row, behind a mark
of its own. Pure.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

import numpy as np

from worker.tokenizers.base import IdArray

BUFFER = 1000  # documents to choose from


class _Buffer:
    """Documents by length, the oldest of those that are equally long first."""

    def __init__(self) -> None:
        self._keys: list[tuple[int, int]] = []
        self._held: dict[int, IdArray] = {}
        self._next = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, document: IdArray) -> None:
        bisect.insort(self._keys, (len(document), self._next))
        self._held[self._next] = document
        self.tokens += len(document)
        self._next += 1

    def take_fitting(self, room: int) -> IdArray | None:
        """The longest that is no longer than `room`."""
        after = bisect.bisect_left(self._keys, (room + 1, -1))
        if not after:
            return None
        length = self._keys[after - 1][0]
        return self._take(bisect.bisect_left(self._keys, (length, -1)))

    def take_shortest(self) -> IdArray:
        return self._take(0)

    def _take(self, place: int) -> IdArray:
        length, number = self._keys.pop(place)
        self.tokens -= length
        return self._held.pop(number)


def pieces(document: IdArray, mark: int, row: int) -> Iterator[IdArray]:
    """A marked document, cut so that each piece fits a row and begins with the mark."""
    yield document[:row]
    for start in range(row, len(document), row - 1):
        yield _marked(mark, document[start : start + row - 1])


def best_fit(documents: Iterable[IdArray], mark: int, row: int) -> Iterator[IdArray | int]:
    """Full rows, [row], and last the number of tokens that filled none.

    Each document begins with `mark`.
    """
    buffer = _Buffer()
    coming = (piece for document in documents for piece in pieces(document, mark, row))
    while True:
        while len(buffer) < BUFFER and (more := next(coming, None)) is not None:
            buffer.add(more)
        if buffer.tokens < row:
            yield buffer.tokens
            return
        yield _fill(buffer, mark, row)


def _fill(buffer: _Buffer, mark: int, row: int) -> IdArray:
    """There are enough tokens for it."""
    parts: list[IdArray] = []
    room = row
    while room:
        fitting = buffer.take_fitting(room)
        if fitting is None:
            shortest = buffer.take_shortest()
            fitting = shortest[:room]
            buffer.add(_marked(mark, shortest[room:]))
        parts.append(fitting)
        room -= len(fitting)
    return np.concatenate(parts)


def _marked(mark: int, tokens: IdArray) -> IdArray:
    return np.concatenate((np.array([mark], np.uint32), tokens))
