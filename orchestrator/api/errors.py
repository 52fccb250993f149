"""Refusals as RFC 9457 problem documents."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response

from orchestrator.api.schemas import FieldError, Problem

PROBLEM = "application/problem+json"


class Refused(Exception):
    """The service understood and says no; `slug` is the stable end of the problem's type."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        hint: str | None = None,
        errors: tuple[FieldError, ...] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.hint = hint
        self.errors = errors
        self.headers = headers or {}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that can answer these problems."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {PROBLEM: {}}}
        for status in sorted({*statuses, 500})
    }


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    problem = Problem(
        type=f"urn:longhaul:problem:{error.slug}",
        title=error.slug.replace("-", " ").capitalize(),
        status=error.status,
        detail=error.detail,
        instance=request.url.path,
        hint=error.hint,
        errors=error.errors,
    )
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, error.status, error.headers, media_type=PROBLEM)


def install_handlers(app: FastAPI) -> None:
    app.add_exception_handler(Refused, _on_refused)
