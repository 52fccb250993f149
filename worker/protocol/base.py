"""What every wire type shares: frozen models, and numbers with limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PROTOCOL_VERSION = 3
SUPPORTED_PROTOCOLS = frozenset({2, 3})

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class Spec(BaseModel):
    """Base of what people and the control plane write: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Report(BaseModel):
    """Base of what workers report: frozen, unknown keys kept."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="strings")
