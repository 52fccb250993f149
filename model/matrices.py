"""Which weights are matrices of a block, and how they lie, by name alone.

Must not import the worker.
"""

from __future__ import annotations

from typing import NamedTuple


class MatrixAxes(NamedTuple):
    """How many of a weight's last axes its product sums over, and how many it yields.

    What stands before them counts layers.
    """

    inputs: int
    outputs: int


_MATRICES = {
    "attention.query": MatrixAxes(1, 2),
    "attention.key": MatrixAxes(1, 2),
    "attention.value": MatrixAxes(1, 2),
    "attention.out": MatrixAxes(2, 1),
    "attention.gate": MatrixAxes(1, 1),
    "feed.gate": MatrixAxes(1, 1),
    "feed.up": MatrixAxes(1, 1),
    "feed.down": MatrixAxes(1, 1),
}


def matrix_axes(name: str) -> MatrixAxes | None:
    """Of the weight with this dotted name; None for embeddings, norms and single numbers."""
    return _MATRICES.get(".".join(name.split(".")[-2:]))
