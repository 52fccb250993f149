"""What runs of a program need beside their spec: their bundles and their secrets.

Owns status codes alone. A secret's value is in one answer, to the agent that starts the run's
current attempt, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from orchestrator import bundles, secret_values
from orchestrator.api.agents import Secret, TheService, refusals
from orchestrator.api.auth import csrf_checked, service_of
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.schemas import BundleView
from orchestrator.service import Service
from orchestrator.store import bundles as rows
from orchestrator.store import callers, programs
from worker.protocol import Secrets, SecretsAsked

Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the tar file")]
Tar = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

router = APIRouter(prefix="/api/v1", tags=["bundles"], dependencies=[Depends(csrf_checked)])
for_agents = APIRouter(prefix="/api/v1/agents", tags=["agents"])


def mount(app: FastAPI) -> None:
    """Adds what agents call; `router` is with the other routes of people."""
    app.include_router(for_agents)


@router.put(
    "/bundles/{sha256}",
    status_code=201,
    response_model=BundleView,
    responses={
        **problem_responses(401, 403, 413, 422),
        200: {"model": BundleView, "description": "Kept before"},
    },
    openapi_extra={"requestBody": {"required": True, "content": Tar}},
)
async def keep_bundle(request: Request, response: Response, sha256: Digest) -> BundleView:
    """Keeps a tar file under its hash; what is there already is not read again."""
    service = service_of(request)
    if (size := await _used(service, sha256)) is not None:
        response.status_code = 200
        return BundleView(bundle=bundles.PREFIX + sha256, bytes=size)
    try:
        size = await bundles.keep(service, sha256, request.stream())
    except bundles.OtherContent:
        raise Refused(
            422,
            "other-content",
            "The bundle's bytes do not have the hash that it was sent under.",
            "Send it again; 'longhaul submit' packs and sends a workdir by itself.",
        ) from None
    except bundles.TooLarge:
        raise too_large(service.settings.max_bundle_bytes) from None
    return BundleView(bundle=bundles.PREFIX + sha256, bytes=size)


@router.get("/bundles/{sha256}", response_model=BundleView, responses=problem_responses(401, 404))
async def show_bundle(request: Request, sha256: Digest) -> BundleView:
    size = await bundles.size_of(service_of(request), sha256)
    if size is None:
        raise _no_such_bundle()
    return BundleView(bundle=bundles.PREFIX + sha256, bytes=size)


@for_agents.get(
    "/bundles/{sha256}",
    response_class=StreamingResponse,
    responses={
        **problem_responses(401, 404, 409, 422),
        200: {"content": Tar, "description": "The tar file"},
    },
)
async def fetch_bundle(
    sha256: Digest, group: str, host: int, instance: str, service: TheService, secret: Secret
) -> StreamingResponse:
    """The bundle for an agent's run."""
    with refusals():
        await service.writer.run(
            lambda connection: callers.identify_instance(connection, group, host, instance, secret)
        )
    size = await bundles.size_of(service, sha256)
    if size is None:
        raise _no_such_bundle()
    return StreamingResponse(
        bundles.content(service, sha256),
        headers={"Content-Length": str(size)},
        media_type="application/octet-stream",
    )


@for_agents.post("/secrets", responses=problem_responses(401, 404, 409, 422))
async def hand_secrets(call: SecretsAsked, service: TheService, secret: Secret) -> Secrets:
    """The values that the spec of the caller's current attempt names, and no others."""

    def names(connection: Connection) -> tuple[str, ...]:
        return programs.secrets_of(connection, call, secret)

    with refusals():
        wanted = await service.writer.run(names)
    try:
        found = await to_thread.run_sync(secret_values.values, service.settings, wanted)
    except secret_values.NoSuchSecret as missing:
        raise Refused(
            404,
            "no-such-secret",
            f"The service keeps no secret {missing.name}.",
            "Have an admin put its value into a file of that name in secrets_dir.",
        ) from None
    return Secrets(values=found)


def too_large(limit: int) -> Refused:
    return Refused(
        413,
        "body-too-large",
        f"The bundle is larger than {limit >> 20} MiB.",
        "Leave data and environments out of the workdir, or raise max_bundle_bytes.",
    )


async def _used(service: Service, sha256: str) -> int | None:
    """As `bundles.size_of`; what is sent again is meant to be named, and stays until it is."""
    now = service.clock.now()
    if not await service.writer.run(lambda connection: rows.use(connection, sha256, now)):
        return None
    return await bundles.size_of(service, sha256)


def _no_such_bundle() -> Refused:
    return Refused(
        404, "no-such-bundle", "The service has no such bundle.", "Send it first, with PUT."
    )
