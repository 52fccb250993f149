"""Who is let in: tokens, one-time links, sessions, CSRF, Host names, headers."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from orchestrator.api.auth import admin_token
from orchestrator.store import tables
from tests.unit.api_world import HOST, RUNS, TOKEN, Client, World, tiny_spec

OURS = {"Origin": f"http://{HOST}"}


@pytest.fixture
def admin(here: World) -> Iterator[Client]:
    with here.client() as made:
        yield made


def browser(admin: Client) -> Client:
    return Client(admin.portal, admin.app, {})


def signed_in(admin: Client) -> Client:
    link = admin.post("/api/v1/login-codes").json()["url"]
    guest = browser(admin)
    answer = guest.get(link)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    return guest


def csrf(here: World) -> str:
    with here.engine.connect() as connection:
        return connection.execute(select(tables.sessions.c.csrf)).scalar_one()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Cookie": "longhaul_inst0001=guess"},
    ],
)
def test_a_stranger_is_refused_everywhere(admin: Client, headers: dict[str, str]) -> None:
    stranger = Client(admin.portal, admin.app, headers)
    for method, path in [
        ("GET", RUNS),
        ("POST", RUNS),
        ("POST", "/api/v1/runs:preflight"),
        ("GET", f"{RUNS}/x"),
        ("DELETE", f"{RUNS}/x"),
        ("POST", f"{RUNS}/x/cancel"),
        ("GET", f"{RUNS}/x/stream"),
        ("POST", "/api/v1/login-codes"),
    ]:
        answer = stranger.request(method, path)
        assert answer.status_code == 401, path
        assert answer.json()["type"] == "urn:longhaul:problem:sign-in-needed"
        assert TOKEN not in answer.text


def test_every_route_but_the_open_ones_needs_a_sign_in(admin: Client) -> None:
    open_paths = {"/healthz", "/readyz", "/metrics", "/login"}
    for path, methods in admin.app.openapi()["paths"].items():
        for method in methods:
            answer = browser(admin).request(method.upper(), path.replace("{run}", "x"))
            assert (answer.status_code == 401) == (path not in open_paths), (method, path)


def test_a_link_signs_in_one_browser_once(admin: Client, here: World) -> None:
    link = admin.post("/api/v1/login-codes").json()["url"]
    first, second = browser(admin), browser(admin)
    answer = first.get(link)
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert answer.content == b""
    assert first.get(RUNS).status_code == 200
    again = second.get(link)
    assert again.status_code == 401
    assert again.json()["type"] == "urn:longhaul:problem:login-link-spent"
    assert "Set-Cookie" not in again.headers
    with here.engine.connect() as connection:
        stored = str(connection.execute(select(tables.sessions)).all())
        stored += str(connection.execute(select(tables.login_codes)).all())
    assert link.split("code=")[1] not in stored
    assert first.cookies["longhaul_inst0001"] not in stored


def test_a_link_and_a_session_grow_old(admin: Client, here: World) -> None:
    old = admin.post("/api/v1/login-codes").json()["url"]
    guest = signed_in(admin)
    here.clock.at += timedelta(minutes=10)
    assert browser(admin).get(old).status_code == 401
    assert guest.get(RUNS).status_code == 200
    here.clock.at += timedelta(hours=12)
    assert guest.get(RUNS).status_code == 401


@pytest.mark.parametrize("code", ["", "guess", "x" * 5000])
def test_a_guessed_code_lets_nobody_in(admin: Client, code: str) -> None:
    answer = browser(admin).get("/login", params={"code": code})
    assert answer.status_code == 401
    assert "Set-Cookie" not in answer.headers


def test_a_browser_changes_something_only_from_our_pages(admin: Client, here: World) -> None:
    admin.post(RUNS, json=tiny_spec())
    guest = signed_in(admin)
    token = csrf(here)
    for headers in (
        {},
        OURS,
        {"X-CSRF-Token": token},
        OURS | {"X-CSRF-Token": "guess"},
        {"Origin": "http://evil.example", "X-CSRF-Token": token},
        {"Origin": "null", "X-CSRF-Token": token},
    ):
        answer = guest.post(f"{RUNS}/tiny/pause", headers=headers)
        assert answer.status_code == 403, headers
        assert answer.json()["type"] == "urn:longhaul:problem:cross-site-request"
    good = guest.post(f"{RUNS}/tiny/pause", headers=OURS | {"X-CSRF-Token": token})
    assert good.status_code == 202
    form = guest.post(f"{RUNS}/tiny/cancel", headers=OURS, data={"csrf_token": token})
    assert form.status_code == 202


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8700", 200),
        ("[::1]:8700", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1:8700", 421),
        ("", 421),
    ],
)
def test_only_loopback_names_are_answered(admin: Client, host: str, status: int) -> None:
    answer = admin.get("/healthz", headers={"Host": host})
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/healthz", RUNS, "/nothing", "/login?code=x"])
def test_every_answer_has_the_security_headers(admin: Client, path: str) -> None:
    headers = admin.get(path).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_token_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    first = admin_token(tmp_path)
    path = tmp_path / "token"
    assert len(first) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert admin_token(tmp_path) == first == path.read_text().strip()


def test_an_empty_token_file_is_no_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ValueError, match="holds no token"):
        admin_token(tmp_path)


def test_health_needs_no_token_and_tells_trouble(admin: Client, here: World) -> None:
    guest = browser(admin)
    assert guest.get("/healthz").json()["status"] == "ok"
    assert guest.get("/readyz").status_code == 200
    here.trouble = "the loop has ended"
    answer = guest.get("/readyz")
    assert answer.status_code == 503
    assert (answer.json()["status"], answer.json()["detail"]) == ("degraded", "the loop has ended")
    assert guest.get("/healthz").status_code == 200


def test_a_database_without_tables_is_not_ready(admin: Client, here: World) -> None:
    tables.metadata.drop_all(here.engine)
    answer = browser(admin).get("/readyz")
    assert answer.status_code == 503
    assert "database" in answer.json()["detail"]


def test_metrics_are_prometheus_text(admin: Client) -> None:
    answer = browser(admin).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "longhaul_" in answer.text


def test_the_openapi_document_resolves_and_declares_its_problems(admin: Client) -> None:
    document = admin.get("/api/v1/openapi.json").json()
    schemas = document["components"]["schemas"]
    for reference in _references(document):
        assert reference.startswith("#/components/schemas/")
        assert reference.rsplit("/", 1)[1] in schemas, reference
    submit = document["paths"]["/api/v1/runs"]["post"]
    assert {"200", "201", "400", "401", "409", "413", "415", "422"} <= submit["responses"].keys()
    assert "application/yaml" in submit["requestBody"]["content"]
    assert admin.get("/docs").status_code == 404


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
