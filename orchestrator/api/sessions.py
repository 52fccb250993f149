"""How a browser is let in and out: a one-time link, the session behind its cookie, the way out.

A link and its session act as the holder of the token that asked for the link, and end with it.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from orchestrator.api.auth import (
    Meant,
    count_guess,
    digest,
    gate_of,
    refuse_guesser,
    remote_of,
    service_of,
)
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.schemas import LoginLink
from orchestrator.store import tokens

CODE_LIFE = timedelta(minutes=10)
SESSION_LIFE = timedelta(hours=12)

router = APIRouter(tags=["sign-in"])


@router.post(
    "/api/v1/login-codes",
    status_code=201,
    response_model=LoginLink,
    responses=problem_responses(401, 403),
)
async def make_login_code(request: Request, session: Meant) -> LoginLink:
    """A link that signs in one browser as the caller; it works once, within ten minutes."""
    service, code = service_of(request), secrets.token_urlsafe(32)
    now, who = service.clock.now(), session.actor
    until = now + CODE_LIFE
    await service.writer.run(
        lambda connection: tokens.keep_code(connection, now, who, digest(code), until)
    )
    base = service.settings.public_url or f"{request.url.scheme}://{request.headers['Host']}"
    return LoginLink(url=f"{base}/login?code={code}", expires_at=until)


@router.get(
    "/login",
    status_code=303,
    response_class=Response,
    responses=problem_responses(401, 422),
)
async def login(request: Request, code: str) -> Response:
    """Trades the code for a session, and goes on to the dashboard."""
    refuse_guesser(request)
    cookie = secrets.token_urlsafe(32)
    if not await _opened(request, code, cookie):
        count_guess(request, digest(code))
        raise Refused(
            401,
            "login-link-spent",
            "This link was used before, is older than ten minutes, or its token was revoked.",
            "Ask for a new one: longhaul link",
        )
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        gate_of(request).cookie,
        cookie,
        max_age=int(SESSION_LIFE.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


async def _opened(request: Request, code: str, cookie: str) -> bool:
    service, now = service_of(request), service_of(request).clock.now()
    return await service.writer.run(
        lambda connection: tokens.open_session(
            connection,
            now,
            code_sha256=digest(code),
            session_sha256=digest(cookie),
            csrf=secrets.token_urlsafe(32),
            expires_at=now + SESSION_LIFE,
            file_token=gate_of(request).file_token,
            remote=remote_of(request),
        )
    )


@router.post(
    "/logout",
    status_code=303,
    response_class=Response,
    responses=problem_responses(401, 403),
)
async def logout(request: Request, session: Meant) -> Response:
    """Ends the browser's session; the token behind it stays good."""
    service, name = service_of(request), gate_of(request).cookie
    now, who, cookie = service.clock.now(), session.actor, request.cookies.get(name)
    if cookie is not None:
        await service.writer.run(
            lambda connection: tokens.close_session(connection, now, who, digest(cookie))
        )
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(name, httponly=True, samesite="strict")
    return answer
