"""Samples by number: of text in memory, or of shards that stay on disk and are mapped.

Owns how tokens are cut into samples. Must not import JAX.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worker.protocol.shards import samples_in

Rows = NDArray[np.int32]  # [sequences, context + 1]
Ids: TypeAlias = NDArray[np.unsignedinteger[Any]]


class Samples(Protocol):
    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> Rows:
        """The samples with these numbers, [len(numbers), context + 1]."""
        ...


class InMemory:
    """The rows of one array."""

    def __init__(self, rows: NDArray[np.generic]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, numbers: Sequence[int]) -> Rows:
        return self._rows[np.asarray(numbers, np.int64)].astype(np.int32)


class Stream:
    """One stream of ids that lies in several arrays; sample i begins at id i · `stride`.

    A sample may begin in one array and end in another. `first` and `count` take some of the samples
    alone.
    """

    def __init__(
        self,
        files: Sequence[Ids],
        width: int,
        stride: int,
        first: int = 0,
        count: int | None = None,
    ) -> None:
        self._files, self._width, self._stride, self._first = files, width, stride, first
        self._ends = list(itertools.accumulate(len(file) for file in files))
        whole = samples_in(self._ends[-1] if files else 0, width, stride)
        self._count = whole - first if count is None else count

    def __len__(self) -> int:
        return self._count

    def take(self, numbers: Sequence[int]) -> Rows:
        rows = np.empty((len(numbers), self._width), np.int32)
        for row, number in zip(rows, numbers, strict=True):
            self._fill(row, (self._first + number) * self._stride)
        return rows

    def _fill(self, row: NDArray[np.int32], start: int) -> None:
        file, filled = bisect.bisect_right(self._ends, start), 0
        while filled < len(row):
            ids = self._files[file]
            at = start + filled - (self._ends[file] - len(ids))
            piece = ids[at : at + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            file += 1
