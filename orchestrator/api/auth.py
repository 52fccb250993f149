"""Who may call: the administrator's token, and browsers that were let in by a one-time link.

Owns the token file, login codes, sessions, CSRF and the check of the Host header. Only hashes of
codes, sessions and the token are kept in memory or in the database. Agents have secrets of their
own (`api.agents`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import Connection, delete, insert, select, update

from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.schemas import LoginLink
from orchestrator.roles import Role
from orchestrator.service import Service
from orchestrator.store.audit import Actor
from orchestrator.store.tables import login_codes, sessions

CODE_LIFE = timedelta(minutes=10)
SESSION_LIFE = timedelta(hours=12)
TOKEN_FILE = "token"  # noqa: S105 - a file name
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
ADMIN = "admin"


@dataclass(frozen=True)
class Session:
    """A caller who was let in. `csrf` is None for a token, which no browser sends by itself."""

    actor: Actor
    csrf: str | None = field(repr=False)

    @property
    def role(self) -> Role:
        return self.actor.role


@dataclass(frozen=True)
class Gate:
    """What callers are held against; the cookie's name belongs to the installation.

    Browsers send a cookie to every port of a host, so two services on one machine must not share
    its name.
    """

    token_sha256: str = field(repr=False)
    cookie: str


def make_gate(token: str, installation: str) -> Gate:
    return Gate(digest(token), f"longhaul_{installation}")


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def admin_token(data_dir: Path) -> str:
    """Reads `<data_dir>/token`; the first start makes it, readable by its owner alone."""
    path = data_dir / TOKEN_FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if len(token) < 32:
            raise ValueError(f"{path} holds no token; delete it and start again") from None
        return token
    token = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token


def service_of(request: Request) -> Service:
    return request.app.state.service


def gate_of(request: Request) -> Gate:
    return request.app.state.gate


async def signed_in(request: Request) -> Session:
    """The caller, by token or by session cookie; refuses with 401 who is neither."""
    gate, header = gate_of(request), request.headers.get("Authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        same = hmac.compare_digest(digest(token.strip()), gate.token_sha256)
        if scheme.lower() == "bearer" and same:
            return Session(Actor(ADMIN, Role.ADMIN, remote_of(request)), None)
        raise _stranger("The token is not the one of this service.")
    cookie = request.cookies.get(gate.cookie)
    if cookie is not None:
        found = await to_thread.run_sync(_session, service_of(request), cookie, remote_of(request))
        if found is not None:
            return found
        raise _stranger("The session is over.")
    raise _stranger("The call carries neither a token nor a session.")


def _stranger(detail: str) -> Refused:
    return Refused(
        401,
        "sign-in-needed",
        detail,
        "Programs send 'Authorization: Bearer' with the token in the service's data folder;"
        " a browser opens the link that 'longhaul link' prints.",
        headers={"WWW-Authenticate": "Bearer"},
    )


def remote_of(request: Request) -> str | None:
    """The address that the call came from; None where the server knows none."""
    return None if request.client is None else request.client.host


def _session(service: Service, cookie: str, remote: str | None) -> Session | None:
    now = service.clock.now()
    query = select(sessions).where(
        sessions.c.session_sha256 == digest(cookie), sessions.c.expires_at > now
    )
    with service.read.connect() as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    return Session(Actor(row.owner or row.role, Role(row.role), remote), row.csrf)


async def csrf_checked(
    request: Request, session: Annotated[Session, Depends(signed_in)]
) -> Session:
    """The caller; with a cookie, a change also needs the session's CSRF token and our Origin."""
    if session.csrf is None or request.method in SAFE_METHODS:
        return session
    origin = request.headers.get("Origin")
    ours = f"{request.url.scheme}://{request.headers.get('Host', '')}"
    given = request.headers.get(CSRF_HEADER) or await _form_token(request)
    same = hmac.compare_digest(given.encode(), session.csrf.encode())
    if origin != ours or not same:
        raise Refused(
            403,
            "cross-site-request",
            "The change was not asked for by a page of this service.",
            "Reload the page and try again.",
        )
    return session


async def _form_token(request: Request) -> str:
    kind = request.headers.get("Content-Type", "")
    if not kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        return ""
    value = (await request.form()).get(CSRF_FIELD)
    return value if isinstance(value, str) else ""


SignedIn = Annotated[Session, Depends(signed_in)]
Checked = Annotated[Session, Depends(csrf_checked)]

router = APIRouter()


@router.post(
    "/api/v1/login-codes",
    status_code=201,
    response_model=LoginLink,
    responses=problem_responses(401, 403),
    tags=["sign-in"],
)
async def make_login_code(request: Request, session: Checked) -> LoginLink:
    """A link that signs in one browser; it works once, within ten minutes."""
    service, code = service_of(request), secrets.token_urlsafe(32)
    now = service.clock.now()
    await service.writer.run(lambda connection: _keep_code(connection, code, now))
    base = f"{request.url.scheme}://{request.headers['Host']}"
    return LoginLink(url=f"{base}/login?code={code}", expires_at=now + CODE_LIFE)


def _keep_code(connection: Connection, code: str, now: datetime) -> None:
    connection.execute(delete(login_codes).where(login_codes.c.expires_at < now))
    connection.execute(delete(sessions).where(sessions.c.expires_at < now))
    values = {"code_sha256": digest(code), "expires_at": now + CODE_LIFE}
    connection.execute(insert(login_codes).values(values))


@router.get(
    "/login",
    status_code=303,
    response_class=Response,
    responses=problem_responses(401, 422),
    tags=["sign-in"],
)
async def login(request: Request, code: str) -> Response:
    """Trades the code for a session, and goes on to the dashboard."""
    service, cookie = service_of(request), secrets.token_urlsafe(32)
    now = service.clock.now()
    used = await service.writer.run(lambda connection: _use_code(connection, code, cookie, now))
    if not used:
        raise Refused(
            401,
            "login-link-spent",
            "This link was used before, or is older than ten minutes.",
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


def _use_code(connection: Connection, code: str, cookie: str, now: datetime) -> bool:
    """One statement marks the code as used, so that of two calls one succeeds."""
    c = login_codes.c
    unused = (c.code_sha256 == digest(code), c.used_at.is_(None), c.expires_at > now)
    done = connection.execute(update(login_codes).where(*unused).values(used_at=now))
    if done.rowcount != 1:
        return False
    connection.execute(
        insert(sessions).values(
            session_sha256=digest(cookie),
            csrf=secrets.token_urlsafe(32),
            role=ADMIN,
            created_at=now,
            expires_at=now + SESSION_LIFE,
        )
    )
    return True
