"""What people send to have something done to a run: the bodies of wishes, with their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from worker.protocol import NAME_PATTERN

# Tabs and line ends, but nothing else that steers a terminal or that a database refuses.
TEXT = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"

Reason = Annotated[str, Field(max_length=500, pattern=TEXT, description="Kept in the history")]
Step = Annotated[int, Field(ge=0, le=1 << 31)]
CheckpointId = Annotated[str, Field(max_length=40, pattern=r"^[a-z][a-z0-9-]*$")]
Place = Annotated[Step | CheckpointId, Field(description="A step or a checkpoint's id")]
Batches = Annotated[
    int,
    Field(ge=0, le=100_000, description="So many batches of the plan are passed over, for good"),
]
Path = Annotated[str, Field(min_length=1, max_length=120)]
Settings = Annotated[
    dict[Path, JsonValue],
    Field(max_length=50, description="New values of the spec's fields by dotted path"),
]
Revision = Annotated[
    int | None,
    Field(ge=1, le=1 << 31, description="Refused when the run is at another revision"),
]


class Asking(BaseModel):
    """Base: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ResumeRequest(Asking):
    """All of it may be left out: the run then goes on as it is from its newest good checkpoint."""

    reason: Reason | None = None
    start: Place | None = Field(default=None, alias="from")
    skip_batches: Batches = 0
    set: Settings = Field(default_factory=dict[str, JsonValue])
    expected_revision: Revision = None


class RollbackRequest(Asking):
    to: Place
    reason: Reason | None = None
    skip_batches: Batches = 0


class ForkRequest(Asking):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    at: Place
    set: Settings = Field(default_factory=dict[str, JsonValue])
    reason: Reason | None = None
    expected_revision: Revision = None


class SaveRequest(Asking):
    reason: Reason | None = None


class QuarantineRequest(Asking):
    reason: Annotated[Reason, Field(min_length=1)]


BODIES = (ResumeRequest, RollbackRequest, ForkRequest, SaveRequest, QuarantineRequest)
