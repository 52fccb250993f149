"""The routes that only an admin may call: tokens, and the audit log."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response

from orchestrator.api.access_schemas import (
    AuditEntry,
    AuditPage,
    TokenMade,
    TokenRequest,
    TokenView,
)
from orchestrator.api.auth import Admin, digest, new_token, service_of
from orchestrator.api.bodies import read_model
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.service import Service
from orchestrator.store import audit, tokens

router = APIRouter(prefix="/api/v1", tags=["access"])
TOKEN_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TokenRequest"}}},
    }
}
IdOrName = Annotated[str, Path(pattern="^[a-z0-9-]{1,40}$")]
Filter = Annotated[str | None, Query(pattern="^[!-~]{1,120}$")]


@router.post(
    "/tokens",
    status_code=201,
    response_model=TokenMade,
    responses=problem_responses(400, 401, 403, 409, 413, 415, 422),
    openapi_extra=TOKEN_BODY,
)
async def create_token(request: Request, session: Admin) -> TokenMade:
    """A new token. Its secret is in this answer and nowhere else: only its hash is kept."""
    service, asked = service_of(request), await read_model(request, TokenRequest)
    secret, now, who = new_token(), service.clock.now(), session.actor
    life = asked.expires_seconds
    try:
        made = await service.writer.run(
            lambda connection: tokens.create(
                connection,
                now,
                who,
                sha256=digest(secret),
                name=asked.name,
                owner=asked.owner,
                role=asked.role,
                expires_at=None if life is None else now + timedelta(seconds=life),
            )
        )
    except tokens.NameTaken:
        raise Refused(
            409,
            "name-taken",
            f"There is a token named '{asked.name}' already.",
            "Revoke it first, or choose another name.",
        ) from None
    return TokenMade(token=secret, **vars(made))


@router.get(
    "/tokens",
    response_model=tuple[TokenView, ...],
    responses=problem_responses(401, 403),
)
async def list_tokens(request: Request, session: Admin) -> tuple[TokenView, ...]:
    """Newest first, with those that were revoked or have expired."""

    def read(service: Service) -> list[tokens.Token]:
        with service.read.begin() as connection:
            return tokens.all_tokens(connection)

    found = await to_thread.run_sync(read, service_of(request))
    return tuple(TokenView(**vars(token)) for token in found)


@router.delete(
    "/tokens/{token}",
    status_code=204,
    response_class=Response,
    response_model=None,
    responses=problem_responses(401, 403, 404, 422),
)
async def revoke_token(request: Request, token: IdOrName, session: Admin) -> None:
    """Ends a token at once, with the links and sessions that were made with it."""
    service = service_of(request)
    now, who = service.clock.now(), session.actor
    try:
        await service.writer.run(lambda connection: tokens.revoke(connection, now, who, token))
    except tokens.NoSuchToken:
        raise Refused(
            404,
            "no-such-token",
            "No token that still counts has this id or name.",
            "List them: longhaul token list",
        ) from None


@router.get("/audit", response_model=AuditPage, responses=problem_responses(401, 403, 422))
async def audit_log(
    request: Request,
    session: Admin,
    actor: Filter = None,
    target: Filter = None,
    action: Filter = None,
    cursor: Annotated[int | None, Query(ge=0, le=1 << 62)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> AuditPage:
    """Who did what, from where, newest first. A target is the id of a run or a token."""

    def read(service: Service) -> list[audit.Entry]:
        with service.read.begin() as connection:
            return audit.page(connection, limit + 1, cursor, actor, target, action)

    found = await to_thread.run_sync(read, service_of(request))
    items = tuple(AuditEntry(**vars(entry)) for entry in found[:limit])
    return AuditPage(items=items, next_cursor=str(items[-1].id) if len(found) > limit else None)
