"""Who may call: holders of a token, and browsers that were let in by a one-time link.

Owns the token file, what a caller must show, and which role a call needs. Only hashes of secrets
are kept in memory or in the database. Agents have secrets of their own (`api.agents`); links and
sessions are made in `api.sessions`, tokens in `api.tokens`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Request

from orchestrator.api.errors import Refused
from orchestrator.api.limits import GuessLimit
from orchestrator.roles import Role
from orchestrator.service import Service
from orchestrator.store import tokens
from orchestrator.store.audit import Actor
from orchestrator.store.writer import WriterClosed

TOKEN_FILE = "token"  # noqa: S105 - a file name
TOKEN_PREFIX = "lh_"  # noqa: S105 - so that a leaked token is known for what it is
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
FILE_OWNER = "admin"


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
    guesses: GuessLimit = field(default_factory=GuessLimit)

    @property
    def file_token(self) -> str:
        """The id that stands for the token of the file: another file, another id."""
        return f"file-{self.token_sha256[:11]}"


def make_gate(token: str, installation: str) -> Gate:
    return Gate(digest(token), f"longhaul_{installation}")


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


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


def remote_of(request: Request) -> str | None:
    """The address that the call came from; None where the server knows none."""
    return None if request.client is None else request.client.host


async def signed_in(request: Request) -> Session:
    """The caller, by token or by session cookie; refuses with 401 who is neither.

    429 where too many wrong secrets came from the same address.
    """
    header, cookie = request.headers.get("Authorization"), request.cookies.get(_cookie(request))
    if header is None and cookie is None:
        raise stranger("The call carries neither a token nor a session.")
    refuse_guesser(request)
    if header is not None:
        return await _by_token(request, header)
    assert cookie is not None
    return await _by_cookie(request, cookie)


def _cookie(request: Request) -> str:
    return gate_of(request).cookie


async def _by_token(request: Request, header: str) -> Session:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise stranger("The Authorization header is not of the form 'Bearer TOKEN'.")
    sha256, gate = digest(token.strip()), gate_of(request)
    if hmac.compare_digest(sha256, gate.token_sha256):
        return _let_in(request, tokens.Holder(FILE_OWNER, Role.ADMIN, gate.file_token), None)
    found = await to_thread.run_sync(_holder, service_of(request), sha256)
    if found is None:
        count_guess(request, sha256)
        raise stranger("The token is not one of this service, or it was revoked or has expired.")
    return _let_in(request, found, None)


async def _by_cookie(request: Request, cookie: str) -> Session:
    sha256 = digest(cookie)
    file_token = gate_of(request).file_token
    found = await to_thread.run_sync(_session, service_of(request), sha256, file_token)
    if found is None:
        count_guess(request, sha256)
        raise stranger("The session is over.")
    return _let_in(request, found.holder, found.csrf)


def _let_in(request: Request, holder: tokens.Holder, csrf: str | None) -> Session:
    if holder.touch:
        _touch(service_of(request), holder.token)
    return Session(Actor(holder.owner, holder.role, remote_of(request), holder.token), csrf)


def _touch(service: Service, token: str) -> None:
    """Not waited for: when a token was last used is worth no delay of its use."""
    now = service.clock.now()
    try:
        service.writer.submit(lambda connection: tokens.touch(connection, now, token))
    except WriterClosed:
        return


def refuse_guesser(request: Request) -> None:
    """Raises 429 for an address that has offered too many wrong secrets."""
    now = service_of(request).clock.monotonic()
    wait = gate_of(request).guesses.wait_seconds(remote_of(request), now)
    if wait:
        raise Refused(
            429,
            "too-many-guesses",
            "Too many wrong tokens, sessions or links came from this address.",
            f"Wait {wait} s. Other addresses are not affected, and agents are not either.",
            headers={"Retry-After": str(wait)},
        )


def count_guess(request: Request, sha256: str) -> None:
    now = service_of(request).clock.monotonic()
    gate_of(request).guesses.wrong(remote_of(request), sha256, now)


def stranger(detail: str) -> Refused:
    return Refused(
        401,
        "sign-in-needed",
        detail,
        "Programs send 'Authorization: Bearer' with a token ('longhaul token create', or the file"
        " 'token' in the service's data folder); a browser opens the link that 'longhaul link'"
        " prints.",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _holder(service: Service, sha256: str) -> tokens.Holder | None:
    with service.read.connect() as connection:
        return tokens.holder(connection, sha256, service.clock.now())


def _session(service: Service, sha256: str, file_token: str) -> tokens.OpenSession | None:
    with service.read.connect() as connection:
        return tokens.session(connection, sha256, file_token, service.clock.now())


# ---- what a call needs -------------------------------------------------------------------------


async def meant(request: Request, session: Annotated[Session, Depends(signed_in)]) -> Session:
    """The caller; with a cookie, a change also needs the session's CSRF token and our Origin."""
    if session.csrf is None or request.method in SAFE_METHODS:
        return session
    given = request.headers.get(CSRF_HEADER) or await _form_token(request)
    same = hmac.compare_digest(given.encode(), session.csrf.encode())
    if request.headers.get("Origin") not in _origins(request) or not same:
        raise Refused(
            403,
            "cross-site-request",
            "The change was not asked for by a page of this service.",
            "Reload the page and try again.",
        )
    return session


def _origins(request: Request) -> tuple[str | None, ...]:
    """Ours: the one that was called, and the one that a proxy in front of us shows."""
    here = f"{request.url.scheme}://{request.headers.get('Host', '')}"
    public = service_of(request).settings.public_url
    return (here,) if public is None else (here, public)


async def _form_token(request: Request) -> str:
    kind = request.headers.get("Content-Type", "")
    if not kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        return ""
    value = (await request.form()).get(CSRF_FIELD)
    return value if isinstance(value, str) else ""


async def csrf_checked(request: Request, session: Annotated[Session, Depends(meant)]) -> Session:
    """The caller; whatever is no mere reading needs an operator."""
    return session if request.method in SAFE_METHODS else _with_role(session, Role.OPERATOR)


async def administers(session: Annotated[Session, Depends(meant)]) -> Session:
    return _with_role(session, Role.ADMIN)


def _with_role(session: Session, needed: Role) -> Session:
    if not session.role.includes(needed):
        raise Refused(
            403,
            "role-too-low",
            f"This needs the role {needed}; {session.actor.name} acts as {session.role} here.",
            f"An admin can make a token for it: longhaul token create --role {needed}",
        )
    return session


SignedIn = Annotated[Session, Depends(signed_in)]
Meant = Annotated[Session, Depends(meant)]
Checked = Annotated[Session, Depends(csrf_checked)]
Admin = Annotated[Session, Depends(administers)]
