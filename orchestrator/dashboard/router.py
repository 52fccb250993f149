"""The dashboard's routes. Every fact comes through a `Reader`; every wish goes to the API."""

from __future__ import annotations

import gzip
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from orchestrator.api.auth import Session, SignedIn
from orchestrator.api.errors import Refused
from orchestrator.api.schemas import RunDetail
from orchestrator.dashboard import compare, figures, pages, places, runbook, submit
from orchestrator.dashboard.overview import overview
from orchestrator.dashboard.reader import AuditAsked, LogAsked, Reader
from orchestrator.dashboard.run_page import run_page
from orchestrator.dashboard.views_reader import reader
from orchestrator.roles import Role

router = APIRouter(route_class=pages.PageRoute, include_in_schema=False)
Reads = Annotated[Reader, Depends(reader)]
FAST = 5  # of gzip's nine levels
Filter = Annotated[str | None, Query(pattern="^[!-~]{0,120}$")]


@router.get("/")
def show_overview(
    request: Request, who: SignedIn, reads: Reads, window: Annotated[str | None, Query()] = None
) -> Response:
    shown = overview(reads, window)
    return pages.page(request, "overview.html", reads, who, page=shown)


@router.get("/runs/{name}")
def show_run(
    request: Request,
    who: SignedIn,
    reads: Reads,
    name: str,
    log: Annotated[str | None, Query(max_length=200)] = None,
    rank: Annotated[int | None, Query(ge=0, le=1 << 20)] = None,
) -> Response:
    shown = run_page(reads, _run(reads, name), LogAsked(log or None, rank))
    return pages.page(request, "run.html", reads, who, page=shown)


@router.get("/runs/{name}/figures.json", response_class=Response)
def show_figures(
    request: Request,
    who: SignedIn,
    reads: Reads,
    name: str,
    key: str = "",
    after: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """Chart columns past step `after`, or all of them where `key` is no longer the layout's."""
    drawn = figures.figures(reads, _run(reads, name), key, after)
    return _packed(request, drawn.model_dump_json().encode())


@router.get("/compare")
def show_compare(
    request: Request, who: SignedIn, reads: Reads, a: str | None = None, b: str | None = None
) -> Response:
    """Two runs beside each other; without names, the newest two are offered."""
    first, second = (None if name is None else _run(reads, name) for name in (a or None, b or None))
    shown = compare.compare(reads, first, second)
    return pages.page(request, "compare.html", reads, who, page=shown)


@router.get("/submit")
def show_submit(
    request: Request,
    who: SignedIn,
    reads: Reads,
    start: Annotated[str | None, Query(alias="from", max_length=80)] = None,
) -> Response:
    _needs(who, Role.OPERATOR)
    return pages.page(request, "submit.html", reads, who, page=submit.page(reads, start))


@router.get("/hosts")
def show_hosts(request: Request, who: SignedIn, reads: Reads) -> Response:
    shown = places.hosts(reads)
    return pages.page(request, "hosts.html", reads, who, page=shown)


@router.get("/orphans")
def show_orphans(request: Request, who: SignedIn, reads: Reads) -> Response:
    return pages.page(request, "orphans.html", reads, who, found=reads.orphans())


@router.get("/audit")
def show_audit(
    request: Request,
    who: SignedIn,
    reads: Reads,
    actor: Filter = None,
    action: Filter = None,
    before: Annotated[int | None, Query(ge=0, le=1 << 62)] = None,
) -> Response:
    _needs(who, Role.ADMIN)
    asked = AuditAsked(actor or None, action or None, before)
    deeds = places.deeds(reads.audit(asked), reads.runs())
    return pages.page(request, "audit.html", reads, who, page=deeds, asked=asked)


@router.get("/tokens")
def show_tokens(request: Request, who: SignedIn, reads: Reads) -> Response:
    _needs(who, Role.ADMIN)
    return pages.page(request, "tokens.html", reads, who, tokens=reads.tokens(), roles=tuple(Role))


@router.get("/runbook")
def show_runbook(request: Request) -> Response:
    """Without a session: whoever is paged reads it before anything else."""
    return pages.open_page(request, "runbook.html", text=runbook.as_html())


def _run(reads: Reader, name: str) -> RunDetail:
    run = reads.run(name)
    if run is None:
        raise Refused(404, "run-not-found", f"There is no run named {name}.", "See all runs at /.")
    return run


def _packed(request: Request, body: bytes) -> Response:
    """JSON, compressed where the browser takes that: columns of numbers shrink to a third."""
    headers = {"Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        body, headers = gzip.compress(body, FAST), headers | {"Content-Encoding": "gzip"}
    return Response(body, media_type="application/json", headers=headers)


def _needs(who: Session, role: Role) -> None:
    if not who.role.includes(role):
        raise Refused(
            403,
            "role-too-low",
            f"This page needs the role {role}; you are signed in as {who.role}.",
            f"An admin can make a token for it: longhaul token create --role {role}",
        )


class _Immutable(StaticFiles):
    """Files whose path names their content: they never need to be asked for again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def mount(app: FastAPI) -> None:
    """Adds the pages and their static files to `app`."""
    files = GZipMiddleware(_Immutable(directory=pages.STATIC), minimum_size=500)
    app.mount(pages.static_path(), files, name="static")
    app.include_router(router)
