"""Turns view data into HTML answers: the templates, their filters, headers and error pages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from orchestrator.api.auth import Session
from orchestrator.api.errors import Refused
from orchestrator.api.guards import HEADERS
from orchestrator.dashboard import looks, places, words
from orchestrator.dashboard.reader import Reader
from orchestrator.ledger.checkpoints import in_words
from orchestrator.roles import Role

HERE = Path(__file__).parent
STATIC = HERE / "static"
THEMES = frozenset({"light", "dark"})
THEME_COOKIE = "longhaul_theme"


FILTERS: Mapping[str, Callable[..., str]] = {
    "absolute": words.absolute,
    "cadence": in_words,
    "clock": words.clock,
    "coarse": words.coarse,
    "count": words.count,
    "day_clock": words.day_clock,
    "duration": words.duration,
    "iso": words.iso,
    "local": words.local,
    "loss": words.loss,
    "money": words.money,
    "percent": words.percent,
    "plural": words.plural,
    "short_count": words.short_count,
    "size": words.size,
}
GLOBALS: Mapping[str, object] = {
    "checkpoint_looks": looks.CHECKPOINTS,
    "look_of_attempt": looks.of_attempt,
    "look_of_group": places.of_group,
    "look_of_host": places.of_host,
    "look_of_run": looks.of_run,
    "past": looks.past,
    "verdicts": looks.VERDICTS,
}


@cache
def static_path() -> str:
    """Where the static files are served: named by their content, so that they cache for ever."""
    digest = hashlib.sha256()
    for file in sorted(STATIC.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"/static/{digest.hexdigest()[:16]}"


@cache
def templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Jinja leaves the types of these two open.
    environment.filters |= FILTERS  # pyright: ignore[reportUnknownMemberType]
    environment.globals |= GLOBALS  # pyright: ignore[reportUnknownMemberType]
    return environment


def page(
    request: Request, template: str, reads: Reader, who: Session, **context: object
) -> HTMLResponse:
    """`template` filled in, in the theme that the person chose, with the headers of every page.

    A viewer's page has no button that changes something; the API would refuse it anyway.
    """
    chosen = request.cookies.get(THEME_COOKIE)
    present = [one for one in reads.orphans().items if one.gone_at is None]
    html = (
        templates()
        .get_template(template)
        .render(
            now=reads.now(),
            orphans=len(present),
            static=static_path(),
            theme=chosen if chosen in THEMES else None,
            csrf=who.csrf or "",
            person=f"{who.actor.name}, {who.role}",
            may_act=who.role.includes(Role.OPERATOR),
            may_administer=who.role.includes(Role.ADMIN),
            **context,
        )
    )
    return HTMLResponse(html, headers=HEADERS)


def open_page(request: Request, template: str, **context: object) -> HTMLResponse:
    """As `page`, for whoever comes: it shows nothing that a session could change."""
    chosen = request.cookies.get(THEME_COOKIE)
    theme = chosen if chosen in THEMES else None
    html = templates().get_template(template).render(static=static_path(), theme=theme, **context)
    return HTMLResponse(html, headers=HEADERS)


def error_page(status: int, title: str, detail: str, hint: str | None) -> HTMLResponse:
    html = (
        templates()
        .get_template("error.html")
        .render(
            status=status, title=title, detail=detail, hint=hint, static=static_path(), theme=None
        )
    )
    return HTMLResponse(html, status, headers=HEADERS)


class PageRoute(APIRoute):
    """A route whose refusals are pages for people instead of problem documents."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Refused as refused:
                return _refusal(refused.status, refused.detail, refused.hint)
            except HTTPException as refused:
                return _refusal(refused.status_code, str(refused.detail), None)

        return answer


def _refusal(status: int, detail: str, hint: str | None) -> HTMLResponse:
    if status == 401:
        return error_page(
            401,
            "You are not signed in",
            "This dashboard opens with a link that works once; whoever has a token can make one.",
            "longhaul link",
        )
    title = "Not found" if status == 404 else "That did not work"
    return error_page(status, title, detail, hint)
