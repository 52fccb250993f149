"""Rules that notice trouble in what a step tells. Pure.

A spike is judged by the median and the median absolute deviation (MAD) of the recent losses, which
a few wild ones do not move. For a normal distribution 1.4826 MAD is the standard deviation
(Rousseeuw and Croux, Alternatives to the Median Absolute Deviation, JASA 88, 1993).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from worker.protocol import SpikeSpec

STANDARD_DEVIATIONS_PER_MAD = 1.4826


def not_finite(loss: float, grad_norm: float) -> str | None:
    """Names what is not finite about a step, or None when all is well."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    return None


@dataclass(frozen=True)
class Spike:
    """The loss was over `bound` at `step` and stayed so; `usual` is the median before it."""

    step: int
    loss: float
    usual: float
    bound: float


@dataclass(frozen=True)
class Seen:
    """What a `LossWatch` remembers: it travels with the checkpoint, so that a resumed run judges
    as an undisturbed one would. `suspects` are the latest (step, loss) over the bound."""

    losses: tuple[float, ...] = ()
    suspects: tuple[tuple[int, float], ...] = ()


class LossWatch:
    """Judges one loss after another; None as the spec judges nothing."""

    def __init__(self, spec: SpikeSpec | None, seen: Seen | None = None) -> None:
        self._spec, seen = spec, seen or Seen()
        self._losses = deque(seen.losses, maxlen=spec.window if spec else 0)
        self._suspects = list(seen.suspects) if spec else []

    @property
    def suspects(self) -> bool:
        """Whether the latest losses were over the bound: nothing should be saved on them."""
        return bool(self._suspects)

    @property
    def seen(self) -> Seen:
        return Seen(tuple(self._losses), tuple(self._suspects))

    def judge(self, step: int, loss: float) -> Spike | None:
        """The spike that began some steps ago and is certain now."""
        if self._spec is None:
            return None
        bound = self._bound(self._spec)
        if loss <= bound:
            self._suspects.clear()
            self._losses.append(loss)
            return None
        self._suspects.append((step, loss))
        if len(self._suspects) < self._spec.patience:
            return None
        first, how_high = self._suspects[0]
        return Spike(first, how_high, median(self._losses), bound)

    def _bound(self, spec: SpikeSpec) -> float:
        if len(self._losses) < spec.least:
            return math.inf
        usual = median(self._losses)
        spread = median(abs(loss - usual) for loss in self._losses)
        return usual + max(spec.rise, spec.deviations * STANDARD_DEVIATIONS_PER_MAD * spread)
