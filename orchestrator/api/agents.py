"""The agents' three calls: register, report, offer a checkpoint.

Each proves itself with the secret of its host's last launch. What a report brought is committed
before it is acknowledged; a report that waits for commands holds no transaction while it does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.exc import DataError, IntegrityError
from starlette.routing import Route

from orchestrator.api.errors import Refused, problem_responses
from orchestrator.service import Service
from orchestrator.store import callers, commands, ingest, ledger_events
from orchestrator.store.callers import AgentRefused
from orchestrator.store.intake import DECISIVE
from orchestrator.wakes import LOOP, decision_topic, group_topic, run_topic
from worker.protocol import (
    AgentReport,
    CheckpointAccepted,
    CheckpointOffer,
    Command,
    Register,
    Registered,
    ReportAnswer,
)

OTHER_REPLICA_SECONDS = 1.0  # while another replica's decisions wake nobody here
LOST_WAKE_SECONDS = 10.0
HELD_SECONDS = 10.0
LEAVE = "End the trainer and this agent; a newer one has this host, or nobody needs it."

REPORT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/AgentReport"}}},
    }
}

log = structlog.get_logger(__name__)
router = APIRouter(prefix="/api/v1/agents", tags=["agents"])


def mount(app: FastAPI) -> None:
    """Adds the three calls; the report's route is found first, and by its path alone.

    All agents report all the time, and the framework's search for a route and its arguments would
    cost more than the report itself. Its document and its handlers of errors are used all the same.
    """
    app.include_router(router)
    first = Route(f"{router.prefix}/report", _report, methods=["POST"], include_in_schema=False)
    app.router.routes.insert(0, first)


async def _report(request: Request) -> Response:
    secret = await _secret(request.headers.get("Authorization"))
    return await report(request, await _service(request), secret)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _secret(authorization: Annotated[str | None, Header()] = None) -> str:
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise _refusal(callers.BadSecret("an agent's call carries its secret as a bearer token"))
    return secret.strip()


TheService = Annotated[Service, Depends(_service)]
Secret = Annotated[str, Depends(_secret)]


@router.post("/register", responses=problem_responses(401, 409, 422, 426))
async def register(call: Register, service: TheService, secret: Secret) -> Registered:
    """An agent process presents itself and learns how much of its spool is stored."""
    now = service.clock.now()
    with refusals():
        answer = await service.writer.run(
            lambda connection: ingest.register(connection, call, secret, now)
        )
    run_id = await asyncio.to_thread(_run_of, service, call.group)
    service.wakes.notify(decision_topic(run_id), run_topic(run_id), LOOP)
    found = await asyncio.to_thread(_commands, service, call.group, call.host)
    return answer.model_copy(update={"commands": found})


@router.post(
    "/report",
    response_model=ReportAnswer,
    responses=problem_responses(401, 409, 422),
    openapi_extra=REPORT_BODY,
)
async def report(request: Request, service: TheService, secret: Secret) -> Response:
    """Events and heartbeat in one; answered at once when there is something new to command.

    Body and answer pass by the framework's own conversions: this is the call that all agents make
    all the time, and those would take most of it.
    """
    stored, poll = await _take(service, await request.body(), secret)
    stopping: asyncio.Event = request.app.state.stopping
    found = await _new_commands(service, poll, stored.commands, stopping)
    watched = service.wakes.awaited(run_topic(stored.run_id))
    answer = ReportAnswer(
        acked_seq=stored.acked_seq,
        commands=found,
        commands_digest=commands.commands_digest(found),
        next_report_seconds=service.pace.next_report(poll.group, poll.host, watched),
        at=service.clock.now(),
    )
    return Response(answer.model_dump_json(), media_type="application/json")


@dataclass(frozen=True)
class _Poll:
    """What a held report waits for: other commands than it knows, from `seen` wake-ups on.

    Its events are not kept: thousands of agents wait at once.
    """

    group: str
    host: int
    patience: float
    known: str
    seen: int


async def _take(service: Service, body: bytes, secret: str) -> tuple[ingest.Stored, _Poll]:
    """Stores what the report brings."""
    call = _read_report(body)
    patience = service.pace.patience(call.group, call.host, call.wait_seconds)
    seen = service.wakes.count(group_topic(call.group))
    poll = _Poll(call.group, call.host, patience, call.known_commands, seen)
    delivery = ingest.Delivery(call, secret, service.clock.now(), service.settings.storage_root)
    within = service.pace.gather if _is_quiet(call) else 0.0
    with refusals():
        stored = await service.writer.run_batched(ingest.reports, delivery, within)
    _announce(service, call, stored)
    return stored, poll


def _is_quiet(call: AgentReport) -> bool:
    """A heartbeat that will be held, of a host that trains and has nothing to obey."""
    return (
        call.wait_seconds >= HELD_SECONDS
        and call.running_attempt is not None
        and not call.known_commands
        and not any(isinstance(envelope.event, DECISIVE) for envelope in call.events)
    )


def _read_report(body: bytes) -> AgentReport:
    try:
        return AgentReport.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError(
            [{**detail, "loc": ("body", *detail["loc"])} for detail in found]
        ) from None


@router.post("/checkpoints", responses=problem_responses(401, 409, 422))
async def offer_checkpoint(
    call: CheckpointOffer, service: TheService, secret: Secret
) -> CheckpointAccepted:
    """Lets a written checkpoint count; 409 when it does not come from the current attempt."""
    now = service.clock.now()
    with refusals():
        answer = await service.writer.run(
            lambda connection: ledger_events.offer(connection, call, secret, now)
        )
    service.wakes.notify(decision_topic(call.run_id), run_topic(call.run_id), LOOP)
    service.wakes.notify(group_topic(call.group))  # spares of the other hosts are to hold it
    return answer


def _announce(service: Service, call: AgentReport, stored: ingest.Stored) -> None:
    for kind, number in stored.kinds.items():
        service.telemetry.events.labels(kind).inc(number)
    if stored.dropped:
        service.telemetry.dropped.inc(stored.dropped)
    if stored.kinds:
        service.wakes.notify(run_topic(stored.run_id))
    if stored.decisive:
        service.wakes.notify(decision_topic(stored.run_id), LOOP)
    if stored.exits:
        service.wakes.notify(group_topic(call.group))


async def _new_commands(
    service: Service, poll: _Poll, found: tuple[Command, ...], stopping: asyncio.Event
) -> tuple[Command, ...]:
    """Waits until the commands are other than the agent knows, its patience or the service ends.

    `found` are those of the report's own transaction.
    """
    topic, seen = group_topic(poll.group), poll.seen
    deadline = service.clock.monotonic() + poll.patience
    while True:
        left = deadline - service.clock.monotonic()
        news = commands.commands_digest(found) != poll.known
        if left <= 0 or news or stopping.is_set():
            return found
        patience = _longest_sleep(service)
        await _first_of(service.wakes.wait(topic, seen, min(left, patience)), stopping.wait())
        if left <= patience and service.wakes.count(topic) == seen:
            return found  # the agent asks again at once, and its report looks anyway
        seen = service.wakes.count(topic)
        found = await asyncio.to_thread(_commands, service, poll.group, poll.host)


def _longest_sleep(service: Service) -> float:
    if service.read.dialect.name == "sqlite":
        return math.inf  # one replica alone
    return LOST_WAKE_SECONDS if service.wakes.complete else OTHER_REPLICA_SECONDS


async def _first_of(*waits: Coroutine[object, object, bool]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _commands(service: Service, group: str, host: int) -> tuple[Command, ...]:
    with service.read.connect() as connection:
        return commands.commands_for(connection, group, host, service.settings.storage_root)


def _run_of(service: Service, group: str) -> str:
    with service.read.connect() as connection:
        return callers.run_of(connection, group)


@contextmanager
def refusals() -> Generator[None]:
    try:
        yield
    except AgentRefused as error:
        raise _refusal(error) from None
    except (DataError, IntegrityError, OverflowError) as error:
        # The agent finds the event at fault and sets it aside; a 5xx it would repeat for ever.
        log.error("a call can not be stored", reason=type(error).__name__)
        raise Refused(422, "not-storable", "The database refuses a value in this call.") from None


def _refusal(error: AgentRefused) -> Refused:
    words = str(error)
    match error:
        case callers.BadSecret():
            challenge = {"WWW-Authenticate": "Bearer"}
            return Refused(401, "agent-not-known", words, LEAVE, headers=challenge)
        case callers.OldInstance():
            return Refused(409, "agent-replaced", words, LEAVE)
        case callers.GroupNotWanted():
            return Refused(409, "hosts-not-wanted", words, LEAVE)
        case callers.ProtocolRefused():
            hint = "Update the older of the two; a control plane serves its own and the one before."
            return Refused(426, "protocol-not-served", words, hint)
        case callers.StaleAttempt():
            return Refused(409, "attempt-not-current", words, "End this attempt's trainer.")
        case _:
            return Refused(409, "agent-refused", words)
