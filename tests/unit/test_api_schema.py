"""The API against its own document: drawn calls get no 5xx, and no answer it does not declare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi import Response
from hypothesis import HealthCheck, Phase
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.failures import FailureGroup

from orchestrator.api import agents, programs
from tests.unit.api_world import Client, World, seed_crashed, tiny_spec, world

CHECKED = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
FEW, MANY = 4, 400
STREAMS = "/stream"  # endless: test_api_stream listens to them


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("schema")) as made:
        agents.mount(made.app)
        programs.mount(made.app)
        yield made


@pytest.fixture(scope="module")
def client(here: World) -> Iterator[Client]:
    with here.client() as made:
        run = made.post("/api/v1/runs", json=tiny_spec()).json()["id"]
        seed_crashed(here, run)
        yield made


def operations(here: World, only: str = "") -> list[Any]:
    schema = schemathesis.openapi.from_dict(here.app.openapi())
    found = [result.ok() for result in schema.get_all_operations()]
    return [
        one
        for one in found
        if one is not None and not one.path.endswith(STREAMS) and one.path.startswith(only)
    ]


def exercise(here: World, client: Client, examples: int, only: str = "") -> None:
    for operation in operations(here, only):

        @hypothesis.settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(), known=hypothesis.strategies.booleans())
        def call(case: Any, known: bool) -> None:
            if known and "run" in (case.path_parameters or {}):
                case.path_parameters["run"] = "tiny"
            given = case.as_transport_kwargs(base_url="http://127.0.0.1:8700")
            sent = {key: given[key] for key in ("params", "json", "data") if given.get(key)}
            if isinstance(sent.get("data"), bytes | str):
                sent["content"] = sent.pop("data")
            headers = {**given.get("headers", {}), **client.headers}
            for name in ("Host", "Transfer-Encoding", "Content-Length"):
                headers.pop(name, None)
            answer = client.request(given["method"], given["url"], headers=headers, **sent)
            case.validate_response(schemathesis.Response.from_any(answer), checks=CHECKED)

        call()


def test_drawn_calls_are_answered_as_documented(here: World, client: Client) -> None:
    exercise(here, client, FEW)


@pytest.mark.soak
def test_many_drawn_calls_are_answered_as_documented(here: World, client: Client) -> None:
    exercise(here, client, MANY)


@pytest.mark.parametrize("status", [418, 500])
def test_the_check_can_fail(tmp_path: Path, status: int) -> None:
    with world(tmp_path) as planted:

        @planted.app.get("/api/v1/planted")
        def answer() -> Response:
            return Response(status_code=status)

        with planted.client() as client, pytest.raises(FailureGroup):
            exercise(planted, client, FEW, "/api/v1/planted")
