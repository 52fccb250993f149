"""Is it alive, is it ready, what does it count: for supervisors and Prometheus, without a token.

`/readyz` asks the database and the loop; `/healthz` asks nothing, because a supervisor that
restarts a service whose database is down helps nobody.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.api.auth import service_of
from orchestrator.api.schemas import Health
from orchestrator.service import Service
from orchestrator.store.tables import installation
from worker.protocol import PROTOCOL_VERSION

# What is wrong with the loop, or None: handed in by whoever runs it.
LoopTrouble = Callable[[], str | None]

router = APIRouter(tags=["health"])


def version() -> str:
    return importlib.metadata.version("longhaul")


def health(service: Service, trouble: str | None = None) -> Health:
    return Health(
        status="ok" if trouble is None else "degraded",
        detail=trouble,
        version=version(),
        protocol=PROTOCOL_VERSION,
        installation=service.installation,
    )


@router.get("/healthz", response_model=Health)
async def alive(request: Request) -> Health:
    return health(service_of(request))


@router.get(
    "/readyz",
    response_model=Health,
    responses={503: {"model": Health, "description": "Not ready, and why"}},
)
async def ready(request: Request, response: Response) -> Health:
    service = service_of(request)
    loop: LoopTrouble = request.app.state.loop_trouble
    trouble = await to_thread.run_sync(_database_trouble, service) or loop()
    if trouble is not None:
        response.status_code = 503
    return health(service, trouble)


def _database_trouble(service: Service) -> str | None:
    try:
        with service.read.connect() as connection:
            found = connection.execute(select(installation.c.id)).scalar()
    except SQLAlchemyError as error:
        return f"the database does not answer ({type(error).__name__})"
    return None if found is not None else "the database is not set up"


@router.get("/metrics", response_class=Response)
async def prometheus(request: Request) -> Response:
    """Prometheus text."""
    registry = service_of(request).telemetry.registry
    text = await to_thread.run_sync(generate_latest, registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
