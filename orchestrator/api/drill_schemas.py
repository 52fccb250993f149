"""What the call of a drill takes and answers. Pure data, for the client too."""

from __future__ import annotations

from pydantic import AwareDatetime

from orchestrator.api.requests import Asking, Reason
from orchestrator.api.schemas import View
from worker.protocol import Victim


class DrillRequest(Asking):
    """What to kill, on host 0 of the current attempt."""

    kill: Victim
    reason: Reason | None = None
    force: bool = False


class DrillView(View):
    """A drill that was asked for; the attempt after `attempt` begins at `resumes_from_step`, or at
    a newer checkpoint that is accepted before the kill."""

    run: str
    attempt: int
    kill: Victim
    asked_at: AwareDatetime
    resumes_from_step: int


BODIES = (DrillRequest,)
