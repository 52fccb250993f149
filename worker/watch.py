"""Rules that notice trouble in what a step tells. Pure."""

from __future__ import annotations

import math


def not_finite(loss: float, grad_norm: float) -> str | None:
    """Names what is not finite about a step, or None when all is well."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    return None
