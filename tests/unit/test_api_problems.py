"""Problem documents: their types are listed, and every way to fail answers one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.api.problems import PREFIX, PROBLEMS
from orchestrator.api.schemas import Problem
from tests.unit.api_world import Client

ROOT = Path(__file__).parents[2] / "orchestrator"
KINDS = {"Refused", "NotAccepted"}


def slugs() -> Iterator[tuple[str, str]]:
    """(file, slug) of every refusal that is written down with a literal slug."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            words = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
            texts = [word for word in words if isinstance(word, str)]
            if name in KINDS and texts:
                yield path.name, texts[0]


def test_every_kind_of_refusal_is_listed_and_used() -> None:
    used = {slug for _, slug in slugs()}
    assert used - PROBLEMS.keys() == set(), "add it to orchestrator/api/problems.py"
    generic = {"method-not-allowed", "not-found", "refused"}
    assert PROBLEMS.keys() - used - generic == set()
    assert all(re.fullmatch("[a-z-]+", slug) for slug in PROBLEMS)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "slug"),
    [
        ("GET", "/nowhere", None, 404, "not-found"),
        ("GET", "/api/v2/runs", None, 404, "not-found"),
        ("PUT", "/api/v1/runs", None, 405, "method-not-allowed"),
        ("TRACE", "/healthz", None, 405, "method-not-allowed"),
        ("POST", "/api/v1/runs", "{", 400, "unreadable-body"),
        ("POST", "/api/v1/runs", "{}", 422, "invalid-spec"),
        ("GET", "/api/v1/runs?limit=x", None, 422, "invalid-request"),
        ("POST", "/api/v1/runs", " " * 300_000, 413, "body-too-large"),
        ("POST", "/api/v1/tokens", " " * 300_000, 413, "body-too-large"),
        ("DELETE", "/api/v1/tokens/nobody", " " * 2_000_000, 413, "body-too-large"),
    ],
)
def test_every_way_to_fail_is_a_problem(
    client: Client, method: str, path: str, body: str | None, status: int, slug: str
) -> None:
    headers = {} if body is None else {"Content-Type": "application/json"}
    answer = client.request(method, path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.type == PREFIX + slug
    assert problem.status == status
    assert status in PROBLEMS[slug][0]
    assert problem.title
    assert problem.detail
    assert problem.hint or problem.errors


def test_a_body_in_another_type_is_refused(client: Client) -> None:
    answer = client.post("/api/v1/runs", content="x", headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["type"]) == (415, PREFIX + "unsupported-type")


@pytest.mark.parametrize("told", ["9" * 5000, "0" * 20 + "9"])
def test_a_length_that_is_no_sane_number_is_refused(client: Client, told: str) -> None:
    answer = client.post("/api/v1/runs", content=b"{}", headers={"Content-Length": told})
    assert (answer.status_code, answer.json()["type"]) == (413, PREFIX + "body-too-large")


def test_a_stream_of_bytes_is_cut_where_it_is_too_long(client: Client) -> None:
    async def endless() -> object:
        for _ in range(100):
            yield b"x" * 100_000

    answer = client.post("/api/v1/runs", content=endless())
    assert answer.status_code == 413


def test_every_answer_has_a_request_id(client: Client) -> None:
    given = client.get("/healthz", headers={"X-Request-ID": "mine-1.2"})
    assert given.headers["X-Request-ID"] == "mine-1.2"
    made = {client.get("/nowhere").headers["X-Request-ID"] for _ in range(2)}
    assert len(made) == 2
    for odd in ("a b", "x" * 200, "<script>"):
        other = client.get("/healthz", headers={"X-Request-ID": odd}).headers["X-Request-ID"]
        assert re.fullmatch("[0-9a-f]{32}", other)
