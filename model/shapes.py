"""What the configurations of all families share: the limits of their numbers.

Must not import JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Literal

from pydantic import Field

Fields = dict[str, object]

Size = Annotated[int, Field(gt=0, le=1 << 24)]
Layers = Annotated[int, Field(gt=0, le=1024)]
Heads = Annotated[int, Field(gt=0, le=1024)]
HeadDim = Annotated[int, Field(gt=0, le=4096)]
Theta = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dtype = Literal["bfloat16", "float32"]
# What the backward pass finds stored: all, the outputs of matrix products, or the blocks' inputs.
Remat = Literal["none", "dots", "full"]


def unless(default: object) -> Callable[[object], bool]:
    """For fields that protocol 2 refuses: they are left out where they change nothing."""
    return lambda given: given == default


def dropped(fields: Fields, given: Collection[str], names: Collection[str]) -> None:
    """Takes out of a preset's `fields` what must be derived anew from what was `given`."""
    for name in names:
        if name not in given:
            fields.pop(name, None)
