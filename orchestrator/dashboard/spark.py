"""A loss curve the size of a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, MARGIN = 76, 24, 3
ENOUGH = 30  # points from which on the steep first tenth is left out


@dataclass(frozen=True)
class Spark:
    """An SVG path in a box of 76 by 24, and the place of its last point."""

    path: str
    x: float
    y: float


def spark(losses: Sequence[float]) -> Spark | None:
    """The curve of `losses`, oldest first; None where fewer than two are finite."""
    shown = losses[len(losses) // 10 :] if len(losses) >= ENOUGH else losses
    shown = [value for value in shown if math.isfinite(value)]
    if len(shown) < 2:
        return None
    low, high = min(shown), max(shown)
    across = (WIDTH - 2 * MARGIN) / (len(shown) - 1)
    down = (HEIGHT - 2 * MARGIN) / ((high - low) or 1)
    points = [
        (round(index * across, 1), round(MARGIN + (high - value) * down, 1))
        for index, value in enumerate(shown)
    ]
    return Spark("M" + "L".join(f"{x} {y}" for x, y in points), *points[-1])
