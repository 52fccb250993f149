"""The dashboard's routes. Every fact comes through a `Reader`; every wish goes to the API."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from orchestrator.api.auth import SignedIn
from orchestrator.api.errors import Refused
from orchestrator.api.schemas import RunDetail
from orchestrator.dashboard import figures, pages, runbook
from orchestrator.dashboard.overview import overview
from orchestrator.dashboard.reader import Reader
from orchestrator.dashboard.run_page import run_page
from orchestrator.dashboard.views_reader import reader

router = APIRouter(route_class=pages.PageRoute, include_in_schema=False)
Reads = Annotated[Reader, Depends(reader)]


@router.get("/")
def show_overview(
    request: Request, who: SignedIn, reads: Reads, window: Annotated[str | None, Query()] = None
) -> Response:
    shown = overview(reads, window)
    return pages.page(request, "overview.html", reads.now(), who, page=shown)


@router.get("/runs/{name}")
def show_run(request: Request, who: SignedIn, reads: Reads, name: str) -> Response:
    shown = run_page(reads, _run(reads, name))
    return pages.page(request, "run.html", reads.now(), who, page=shown)


@router.get("/runs/{name}/figures.json", response_class=Response)
def show_figures(
    who: SignedIn, reads: Reads, name: str, key: str = "", after: Annotated[int, Query(ge=0)] = 0
) -> Response:
    """Chart columns past step `after`, or all of them where `key` is no longer the layout's."""
    drawn = figures.figures(reads, _run(reads, name), key, after)
    return Response(drawn.model_dump_json(), media_type="application/json")


@router.get("/runbook")
def show_runbook(request: Request) -> Response:
    """Without a session: whoever is paged reads it before anything else."""
    return pages.open_page(request, "runbook.html", text=runbook.as_html())


def _run(reads: Reader, name: str) -> RunDetail:
    run = reads.run(name)
    if run is None:
        raise Refused(404, "run-not-found", f"There is no run named {name}.", "See all runs at /.")
    return run


class _Immutable(StaticFiles):
    """Files whose path names their content: they never need to be asked for again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def mount(app: FastAPI) -> None:
    """Adds the pages and their static files to `app`."""
    app.mount(pages.static_path(), _Immutable(directory=pages.STATIC), name="static")
    app.include_router(router)
