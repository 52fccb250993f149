"""Refusals and failures as RFC 9457 problem documents.

Owns the one shape in which the API says no. Values that a caller sent are not repeated, except
numbers: a spec or a header may carry a secret.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from orchestrator.api.fields import query_errors
from orchestrator.api.problems import PREFIX
from orchestrator.api.schemas import FieldError, Problem

PROBLEM = "application/problem+json"
REQUEST_ID = "longhaul.request_id"  # in the scope of a request
log = structlog.get_logger(__name__)


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
    """The `responses=` of a route that can answer these problems.

    Who may be told 401 may be told 429 too, after too many guesses.
    """
    guessed = {429} if 401 in statuses else set[int]()
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*statuses, *guessed, 500})
    }


def answer(request: Request, refused: Refused) -> Response:
    """The problem document of `refused`."""
    problem = Problem(
        type=PREFIX + refused.slug,
        title=refused.slug.replace("-", " ").capitalize(),
        status=refused.status,
        detail=refused.detail,
        instance=request.url.path,
        hint=refused.hint,
        errors=refused.errors,
    )
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, refused.status, refused.headers, media_type=PROBLEM)


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return answer(request, error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = query_errors(error.errors())
    return answer(
        request,
        Refused(
            422,
            "invalid-request",
            "The request does not fit.",
            "The parameters and bodies are described at /api/v1/openapi.json.",
            errors,
        ),
    )


# What the framework itself refuses: the slug, and what to do.
_OF_THE_FRAMEWORK = {
    401: ("sign-in-needed", "Send a token."),
    404: ("not-found", "The API's paths are listed at /api/v1/openapi.json."),
    405: ("method-not-allowed", "The header 'Allow' and /api/v1/openapi.json name its methods."),
    413: ("body-too-large", "Send less at once."),
}


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status < 400:
        return Response(status_code=status, headers=error.headers)
    slug, hint = _OF_THE_FRAMEWORK.get(status, ("refused", "Compare it with the API's document."))
    details = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.url.path} does not take {request.method}.",
    }
    refused = Refused(
        status,
        slug,
        details.get(status, str(error.detail)),
        hint,
        headers=dict(error.headers or {}),
    )
    return answer(request, refused)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    log.error(
        "request failed",
        method=request.method,
        path=request.url.path,
        request=request.scope.get(REQUEST_ID),
        exc_info=error,
    )
    return answer(
        request,
        Refused(
            500,
            "internal-error",
            "Longhaul failed to answer; this is a fault of Longhaul, not of the request.",
            "The service's log has the details. Running trainers are not affected.",
        ),
    )


def install_handlers(app: FastAPI) -> None:
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)
