"""What the calls that empty a host take and answer. Pure data, for the client too."""

from __future__ import annotations

from pydantic import AwareDatetime

from orchestrator.api.requests import Asking, Reason
from orchestrator.api.schemas import View
from orchestrator.state import RunState


class DrainRequest(Asking):
    """The reason may be left out. It is told wherever a run waits because of the drain."""

    reason: Reason | None = None


class DrainedRun(View):
    """A run that still holds a part of the host."""

    id: str
    name: str
    state: RunState
    group: str


class DrainView(View):
    """A host that is drained, and who is still there; `done` once nobody is."""

    host: str
    provider: str
    reason: str
    asked_by: str
    asked_at: AwareDatetime
    done: bool
    runs: tuple[DrainedRun, ...]


BODIES = (DrainRequest,)
