"""The route of drills: kill something of a run on purpose. How it came back, its attempts tell."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from orchestrator.api.auth import Checked, csrf_checked, service_of
from orchestrator.api.bodies import read_model
from orchestrator.api.drill_schemas import DrillRequest, DrillView
from orchestrator.api.errors import problem_responses
from orchestrator.api.runs import write
from orchestrator.api.wishes import body
from orchestrator.store import drills
from orchestrator.wakes import LOOP, decision_topic, group_topic, run_topic

router = APIRouter(prefix="/api/v1", tags=["runs"], dependencies=[Depends(csrf_checked)])


@router.post(
    "/runs/{run}/drill",
    status_code=202,
    response_model=DrillView,
    responses=problem_responses(400, 401, 403, 404, 409, 413, 415, 422),
    openapi_extra=body(DrillRequest, required=True),
)
async def drill(request: Request, run: str, session: Checked) -> DrillView:
    """Kills a trainer, an agent, or all of a host of the run, to see that it comes back.

    Refused where the run does not train, or has no accepted checkpoint, unless forced. It counts
    as one failure of its kind, and its incident says that it was a drill.
    """
    asked, service = await read_model(request, DrillRequest), service_of(request)
    now, who = service.clock.now(), session.actor
    wanted = drills.Drill(asked.kill, asked.reason, asked.force)
    done = await write(service, lambda connection: drills.ask(connection, now, run, wanted, who))
    topics = (run_topic(done.run_id), decision_topic(done.run_id), group_topic(done.attempt.group))
    service.wakes.notify(LOOP, *topics)
    return DrillView(
        run=done.run_id,
        attempt=done.attempt.number,
        kill=asked.kill,
        asked_at=now,
        resumes_from_step=done.resumes_from,
    )
