"""Tokens and roles: who gets how far, for how long, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, text, update

from orchestrator.api.limits import GUESSES, WINDOW_SECONDS, GuessLimit
from orchestrator.roles import Role
from orchestrator.state import RunState
from orchestrator.store import tables
from orchestrator.wakes import run_topic
from tests.unit.api_world import BEGAN, HOST, Client, World, tiny_spec, world

RUNS, TOKENS, AUDIT = "/api/v1/runs", "/api/v1/tokens", "/api/v1/audit"


@pytest.fixture
def admin(here: World) -> Iterator[Client]:
    with here.client() as made:
        yield made


def make(admin: Client, name: str = "laptop", **changes: Any) -> dict[str, Any]:
    asked = {"name": name, "owner": "ada", "role": "operator"} | changes
    answer = admin.post(TOKENS, json=asked)
    assert answer.status_code == 201, answer.text
    return answer.json()


def holder(admin: Client, token: str) -> Client:
    return Client(admin.portal, admin.app, {"Authorization": f"Bearer {token}"})


def of_role(admin: Client, role: str) -> Client:
    return holder(admin, make(admin, f"of-{role}", role=role, owner=f"the-{role}")["token"])


def from_address(client: Client, remote: str, method: str, path: str, **kwargs: Any) -> Any:
    """A call that comes from another address than the tests' usual one."""

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(client.app, client=(remote, 4711))
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://{HOST}", headers=client.headers
        ) as http:
            return await http.request(method, path, **kwargs)

    return client.portal.call(call)


# ---- tokens ------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_hash(admin: Client, here: World) -> None:
    made = make(admin)
    secret = made["token"]
    assert secret.startswith("lh_")
    assert len(secret) >= 46
    [listed] = admin.get(TOKENS).json()
    assert listed == {name: value for name, value in made.items() if name != "token"}
    with here.engine.connect() as connection:
        kept = "".join(
            str(connection.execute(select(t)).all()) for t in tables.metadata.tables.values()
        )
    assert secret not in kept
    assert holder(admin, secret).get(RUNS).status_code == 200


def test_a_token_ends_by_its_time_or_by_being_revoked(admin: Client, here: World) -> None:
    short = holder(admin, make(admin, "short", expires_seconds=60)["token"])
    plain = make(admin, "plain")
    eternal = make(admin, "eternal", expires_seconds=None)
    assert plain["expires_at"].startswith("2026-05-30")
    assert eternal["expires_at"] is None
    here.clock.at += timedelta(seconds=59)
    assert short.get(RUNS).status_code == 200
    here.clock.at += timedelta(seconds=1)
    assert short.get(RUNS).status_code == 401
    make(admin, "short")  # its name is free again
    assert admin.delete(f"{TOKENS}/plain").status_code == 204
    assert admin.delete(f"{TOKENS}/{eternal['id']}").status_code == 204
    assert holder(admin, plain["token"]).get(RUNS).status_code == 401
    assert holder(admin, eternal["token"]).get(RUNS).status_code == 401
    assert admin.delete(f"{TOKENS}/plain").status_code == 404
    assert admin.delete(f"{TOKENS}/short").status_code == 204


def test_two_tokens_that_count_never_share_a_name(admin: Client) -> None:
    make(admin)
    again = admin.post(TOKENS, json={"name": "laptop", "owner": "eve", "role": "viewer"})
    assert (again.status_code, again.json()["type"]) == (409, "urn:longhaul:problem:name-taken")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Laptop"},
        {"name": "a" * 41},
        {"owner": "a\nb"},
        {"owner": ""},
        {"role": "root"},
        {"expires_seconds": 59},
        {"expires_seconds": 10**10},
        {"token": "lh_chosen"},
    ],
)
def test_a_request_that_does_not_fit_makes_no_token(admin: Client, changes: dict[str, Any]) -> None:
    asked = {"name": "laptop", "owner": "ada", "role": "operator"} | changes
    assert admin.post(TOKENS, json=asked).status_code == 422
    assert admin.get(TOKENS).json() == []


def test_the_last_use_is_written_at_most_once_a_minute(admin: Client, here: World) -> None:
    mine = holder(admin, make(admin)["token"])
    seen = []
    for seconds in (0, 30, 29, 1):
        here.clock.at += timedelta(seconds=seconds)
        mine.get(RUNS)
        admin.post("/api/v1/login-codes")  # a write after it, so that it is committed
        seen.append(admin.get(TOKENS).json()[0]["last_used_at"])
    assert seen[0] is not None
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] > seen[0]


# ---- roles -------------------------------------------------------------------------------------

CALLS = [
    ("GET", RUNS, Role.VIEWER),
    ("GET", f"{RUNS}/tiny", Role.VIEWER),
    ("GET", f"{RUNS}/tiny/logs", Role.VIEWER),
    ("POST", "/api/v1/login-codes", Role.VIEWER),
    ("POST", f"{RUNS}:preflight", Role.OPERATOR),
    ("POST", RUNS, Role.OPERATOR),
    ("POST", f"{RUNS}/tiny/pause", Role.OPERATOR),
    ("POST", f"{RUNS}/tiny/resume", Role.OPERATOR),
    ("POST", f"{RUNS}/tiny/cancel", Role.OPERATOR),
    ("DELETE", f"{RUNS}/tiny", Role.OPERATOR),
    ("GET", TOKENS, Role.ADMIN),
    ("POST", TOKENS, Role.ADMIN),
    ("DELETE", f"{TOKENS}/x", Role.ADMIN),
    ("GET", AUDIT, Role.ADMIN),
    ("GET", "/api/v1/orphans", Role.VIEWER),
    ("POST", "/api/v1/orphans:reap", Role.ADMIN),
]


@pytest.mark.parametrize("role", list(Role))
def test_each_role_gets_as_far_as_it_should(admin: Client, role: Role) -> None:
    admin.post(RUNS, json=tiny_spec())
    mine = of_role(admin, role)
    for method, path, needed in CALLS:
        answer = mine.request(method, path)
        if role.includes(needed):
            assert answer.status_code not in (401, 403) or "not-your-run" in answer.text, path
        else:
            assert answer.status_code == 403, path
            assert answer.json()["type"] == "urn:longhaul:problem:role-too-low"


def test_runs_belong_to_the_owner_of_the_token(admin: Client, here: World) -> None:
    ada = holder(admin, make(admin, "ada", owner="ada")["token"])
    eve = holder(admin, make(admin, "eve", owner="eve")["token"])
    for name in ("one", "two"):
        assert ada.post(RUNS, json=tiny_spec(name)).status_code == 201
    assert eve.post(f"{RUNS}/one/cancel").status_code == 202  # operators help each other
    with here.engine.begin() as connection:
        connection.execute(update(tables.runs).values(state=RunState.CANCELLED))
    refused = eve.delete(f"{RUNS}/one")
    assert (refused.status_code, refused.json()["type"]) == (
        403,
        "urn:longhaul:problem:not-your-run",
    )
    assert ada.delete(f"{RUNS}/one").status_code == 204
    assert admin.delete(f"{RUNS}/two").status_code == 204


# ---- sessions ----------------------------------------------------------------------------------


def browser_of(client: Client) -> Client:
    guest = Client(client.portal, client.app, {})
    link = client.post("/api/v1/login-codes").json()["url"]
    assert guest.get(link).status_code == 303
    return guest


def csrf_of(here: World) -> dict[str, str]:
    with here.engine.connect() as connection:
        token = connection.execute(select(tables.sessions.c.csrf)).scalar_one()
    return {"Origin": f"http://{HOST}", "X-CSRF-Token": token}


def test_a_session_acts_as_the_holder_of_the_token(admin: Client, here: World) -> None:
    admin.post(RUNS, json=tiny_spec())
    page = browser_of(of_role(admin, "viewer"))
    assert page.get(RUNS).status_code == 200
    refused = page.post(f"{RUNS}/tiny/pause", headers=csrf_of(here))
    assert refused.json()["type"] == "urn:longhaul:problem:role-too-low"


@pytest.mark.parametrize("end", ["revoke", "expire"])
def test_a_session_and_a_link_end_with_their_token(admin: Client, here: World, end: str) -> None:
    mine = holder(admin, make(admin, "mine", expires_seconds=300)["token"])
    page = browser_of(mine)
    link = mine.post("/api/v1/login-codes").json()["url"]
    assert page.get(RUNS).status_code == 200
    if end == "revoke":
        admin.delete(f"{TOKENS}/mine")
    else:
        here.clock.at += timedelta(seconds=300)
    assert page.get(RUNS).status_code == 401
    assert Client(admin.portal, admin.app, {}).get(link).status_code == 401


def test_an_open_stream_ends_with_its_token(admin: Client, here: World) -> None:
    run = admin.post(RUNS, json=tiny_spec()).json()["id"]
    mine = holder(admin, make(admin, "mine")["token"])
    listening = admin.portal.start_task_soon(mine.listen, f"{RUNS}/{run}/stream")
    deadline = time.monotonic() + 10
    while not here.service.wakes.awaited(run_topic(run)):
        assert time.monotonic() < deadline, "nobody listens"
        time.sleep(0.01)
    admin.delete(f"{TOKENS}/mine")
    here.service.wakes.notify(run_topic(run))
    try:
        assert "event: run" in listening.result(10).text
    finally:
        listening.cancel()


def test_signing_out_ends_the_session_alone(admin: Client, here: World) -> None:
    page = browser_of(admin)
    assert page.post("/logout").status_code == 403
    out = page.post("/logout", headers=csrf_of(here))
    assert (out.status_code, out.headers["Location"]) == (303, "/")
    assert "Max-Age=0" in out.headers["Set-Cookie"]
    with here.engine.connect() as connection:
        assert connection.execute(select(tables.sessions)).first() is None
    assert admin.get(RUNS).status_code == 200


def test_another_token_file_ends_the_sessions_of_the_one_before(admin: Client, here: World) -> None:
    page = browser_of(admin)
    with here.engine.begin() as connection:
        connection.execute(update(tables.sessions).values(token_id="file-another"))
    assert page.get(RUNS).status_code == 401


# ---- guesses -----------------------------------------------------------------------------------


def test_an_address_that_guesses_is_not_heard_for_a_while(admin: Client, here: World) -> None:
    good = holder(admin, make(admin)["token"])
    for number in range(GUESSES):
        guesser = holder(admin, f"lh_guess{number}")
        assert from_address(guesser, "203.0.113.9", "GET", RUNS).status_code == 401
    for client in (holder(admin, "lh_another"), good):
        refused = from_address(client, "203.0.113.9", "GET", RUNS)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == str(int(WINDOW_SECONDS))
    assert from_address(good, "203.0.113.9", "GET", "/login?code=x").status_code == 429
    assert from_address(good, "203.0.113.10", "GET", RUNS).status_code == 200
    assert from_address(good, "203.0.113.9", "GET", "/healthz").status_code == 200
    here.clock.at += timedelta(seconds=WINDOW_SECONDS)
    assert from_address(good, "203.0.113.9", "GET", RUNS).status_code == 200


def test_the_same_wrong_secret_again_and_again_is_no_guessing(admin: Client) -> None:
    stale = holder(admin, "lh_revoked")
    for _ in range(3 * GUESSES):
        assert stale.get(RUNS).status_code == 401
    assert admin.get(RUNS).status_code == 200


def test_guesses_at_links_and_sessions_count_too(admin: Client) -> None:
    guest = Client(admin.portal, admin.app, {})
    for number in range(GUESSES):
        guest.get("/login", params={"code": f"guess{number}"})
    assert guest.get("/login", params={"code": "one-more"}).status_code == 429


def test_the_count_of_guesses_stays_small_and_sees_an_ipv6_network_as_one() -> None:
    limit = GuessLimit()
    for number in range(GUESSES):
        limit.wrong(f"2001:db8::{number}", f"guess{number}", 0.0)
    assert limit.wait_seconds("2001:db8::ffff", 1.0) == WINDOW_SECONDS - 1
    assert limit.wait_seconds("2001:db8:0:1::1", 1.0) == 0
    for number in range(20_000):
        limit.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "guess", 2.0)
    assert len(limit._guesses) <= 10_000


# ---- the audit log -----------------------------------------------------------------------------


def test_the_log_tells_who_did_what_from_where(admin: Client) -> None:
    made = make(admin, owner="ada")
    ada = holder(admin, made["token"])
    run = from_address(ada, "198.51.100.7", "POST", RUNS, json=tiny_spec()).json()["id"]
    ada.post(f"{RUNS}/tiny/pause")
    page = admin.get(AUDIT).json()
    assert [entry["action"] for entry in page["items"]] == [
        "run.pause",
        "run.submit",
        "token.create",
    ]
    submit = page["items"][1]
    told = (submit["actor"], submit["role"], submit["remote"], submit["target"])
    assert told == ("ada", "operator", "198.51.100.7", run)
    assert (submit["token_id"], submit["before"], submit["after"]) == (
        made["id"],
        None,
        {"name": "tiny"},
    )
    assert page["items"][0]["before"] == {"desired": "run", "state": "queued"}
    assert made["token"] not in str(page)


def test_the_log_comes_in_pages_and_by_filter(admin: Client) -> None:
    for name in ("one", "two", "three"):
        make(admin, name)
    first = admin.get(AUDIT, params={"limit": 2}).json()
    second = admin.get(AUDIT, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    names = [entry["after"]["name"] for page in (first, second) for entry in page["items"]]
    assert names == ["three", "two", "one"]
    assert second["next_cursor"] is None
    for query, count in (
        ({"actor": "admin"}, 3),
        ({"actor": "eve"}, 0),
        ({"action": "token.create"}, 3),
        ({"action": "run.pause"}, 0),
        ({"target": first["items"][0]["target"]}, 1),
    ):
        assert len(admin.get(AUDIT, params=query).json()["items"]) == count, query
    assert admin.get(AUDIT, params={"actor": "a\0b"}).status_code == 422


# ---- names and proxies -------------------------------------------------------------------------


def test_names_that_are_set_are_answered(tmp_path: Path) -> None:
    names = {"public_url": "https://haul.example.org", "allowed_hosts": ("Inner.example",)}
    with world(tmp_path, **names) as here, here.client() as admin:
        for host, status in (
            ("haul.example.org", 200),
            ("HAUL.example.org:443", 200),
            ("inner.example:8700", 200),
            ("127.0.0.1:8700", 200),
            ("evil.example", 421),
        ):
            assert admin.get("/healthz", headers={"Host": host}).status_code == status, host
        link = admin.post("/api/v1/login-codes").json()["url"]
        assert link.startswith("https://haul.example.org/login?code=")


def test_only_trusted_proxies_say_who_calls_and_how(tmp_path: Path) -> None:
    said = {"X-Forwarded-For": "192.0.2.66, 203.0.113.5", "X-Forwarded-Proto": "https"}
    settings = {"trusted_proxies": ("10.0.0.0/8",), "public_url": "https://haul.example.org"}
    with world(tmp_path, **settings) as here, here.client() as admin:
        for remote, taken in (("10.1.2.3", True), ("192.0.2.1", False)):
            link = admin.post("/api/v1/login-codes").json()["url"]
            path = link.removeprefix("https://haul.example.org")
            nobody = Client(admin.portal, admin.app, {})
            answer = from_address(nobody, remote, "GET", path, headers=said)
            assert answer.status_code == 303
            assert ("Secure" in answer.headers["Set-Cookie"]) is taken
            newest = admin.get(AUDIT, params={"action": "session.open"}).json()["items"][0]
            assert newest["remote"] == ("203.0.113.5" if taken else remote)


def test_a_page_behind_a_proxy_may_change_things(tmp_path: Path) -> None:
    with world(tmp_path, public_url="https://haul.example.org") as here, here.client() as admin:
        page = Client(admin.portal, admin.app, {})
        link = admin.post("/api/v1/login-codes").json()["url"]
        assert page.get(link.removeprefix("https://haul.example.org")).status_code == 303
        headers = csrf_of(here)
        assert page.post("/logout", headers=headers | {"Origin": "https://evil"}).status_code == 403
        public = headers | {"Origin": "https://haul.example.org"}
        assert page.post("/logout", headers=public).status_code == 303


def test_a_database_of_before_has_sessions_that_are_over(admin: Client, here: World) -> None:
    page = browser_of(admin)
    with here.engine.begin() as connection:
        connection.execute(text("UPDATE sessions SET token_id = NULL, owner = NULL"))
    assert page.get(RUNS).status_code == 401
    assert here.clock.at == BEGAN
