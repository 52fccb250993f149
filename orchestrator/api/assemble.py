"""The HTTP face of the control plane: its routes, errors and guards on one FastAPI application.

`bare_app` makes it; `attach` hands it what the routes need. Agents' routes and the dashboard are
added by `app.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from orchestrator.api import (
    drains,
    drills,
    fleet,
    health,
    inventory,
    orphans,
    programs,
    runs,
    sessions,
    stream,
    tokens,
    wishes,
)
from orchestrator.api.access_schemas import TokenRequest
from orchestrator.api.auth import Gate
from orchestrator.api.drain_schemas import BODIES as DRAIN_BODIES
from orchestrator.api.drill_schemas import BODIES as DRILL_BODIES
from orchestrator.api.errors import install_handlers
from orchestrator.api.guards import BodyLimit, KnownHost, Proxied, RequestId, SecurityHeaders
from orchestrator.api.inventory_schemas import BODIES as INVENTORY_BODIES
from orchestrator.api.requests import BODIES
from orchestrator.api.schemas import Problem
from orchestrator.preflight import DiskFree, disk_free
from orchestrator.service import Service
from worker.protocol import AgentReport, CommandSpec, JobSpec

READ_BY_HAND = (
    JobSpec,
    CommandSpec,
    TokenRequest,
    AgentReport,
    *BODIES,
    *INVENTORY_BODIES,
    *DRAIN_BODIES,
    *DRILL_BODIES,
)
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def bare_app(lifespan: Lifespan | None = None) -> FastAPI:
    app = FastAPI(
        title="Longhaul",
        version=health.version(),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # its page would come from a CDN
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
    )
    install_handlers(app)
    # The last is passed first.
    for guard in (BodyLimit, KnownHost, SecurityHeaders, RequestId, Proxied):
        app.add_middleware(guard)
    for part in (
        health,
        sessions,
        tokens,
        runs,
        wishes,
        drills,
        programs,
        fleet,
        drains,
        inventory,
        orphans,
        stream,
    ):
        app.include_router(part.router)
    app.openapi = lambda: _openapi(app)
    return app


def attach(
    app: FastAPI,
    service: Service,
    gate: Gate,
    *,
    stopping: asyncio.Event,
    loop_trouble: health.LoopTrouble,
    free: DiskFree = disk_free,
) -> None:
    """Before the first request. `stopping` ends streams and calls that only wait."""
    app.state.service = service
    app.state.gate = gate
    app.state.loop_trouble = loop_trouble
    app.state.disk_free = free
    app.state.stopping = stopping


def _operation_id(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Adds the schemas of what is read by hand: specs and problem documents."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, extra = models_json_schema(
            [
                *((model, "validation") for model in READ_BY_HAND),
                (Problem, "serialization"),
            ],
            ref_template="#/components/schemas/{model}",
        )
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in extra["$defs"].items():
            schemas.setdefault(name, schema)
        app.openapi_schema = made
    return app.openapi_schema
