"""Every role on every call of the API's document: who is let in, and who is refused.

A call that the table does not name fails the test, so that nobody adds one without deciding.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.api import agents, programs
from orchestrator.api.assemble import bare_app
from orchestrator.api.problems import PREFIX
from tests.unit.api_world import Client, World, world

V, O, A, OPEN, AGENT = "viewer", "operator", "admin", "open", "agent"  # noqa: E741
RUN = "/api/v1/runs/{run}"
CALLS: dict[str, str] = {
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": OPEN,
    "GET /login": OPEN,
    "POST /logout": V,
    "POST /api/v1/login-codes": V,
    "GET /api/v1/tokens": A,
    "POST /api/v1/tokens": A,
    "DELETE /api/v1/tokens/{token}": A,
    "GET /api/v1/audit": A,
    "GET /api/v1/hosts": V,
    "GET /api/v1/hosts/{host}/drain": V,
    "POST /api/v1/hosts/{host}/drain": O,
    "DELETE /api/v1/hosts/{host}/drain": O,
    "GET /api/v1/inventory": V,
    "POST /api/v1/inventory": A,
    "DELETE /api/v1/inventory/{host}": A,
    **{
        f"POST /api/v1/inventory/{{host}}/{what}": O
        for what in ("cordon", "doctor", "probe", "uncordon")
    },
    "GET /api/v1/orphans": V,
    "POST /api/v1/orphans:reap": A,
    "GET /api/v1/runs": V,
    "POST /api/v1/runs": O,
    "POST /api/v1/runs:preflight": O,
    f"GET {RUN}": V,
    f"DELETE {RUN}": O,
    **{
        f"GET {RUN}/{part}": V
        for part in (
            "attempts",
            "branches",
            "chart",
            "checkpoints",
            "events",
            "goodput",
            "incidents",
            "logs",
            "metrics",
            "revisions",
            "stream",
        )
    },
    **{
        f"POST {RUN}/{wish}": O
        for wish in ("cancel", "checkpoint", "drill", "fork", "pause", "resume", "rollback")
    },
    f"POST {RUN}/checkpoints/{{checkpoint}}/quarantine": O,
    "POST /api/v1/agents/register": AGENT,
    "POST /api/v1/agents/report": AGENT,
    "POST /api/v1/agents/checkpoints": AGENT,
    "PUT /api/v1/bundles/{sha256}": O,
    "GET /api/v1/bundles/{sha256}": V,
    "POST /api/v1/agents/secrets": AGENT,
    "GET /api/v1/agents/bundles/{sha256}": AGENT,
}
ROLES = (V, O, A)


def documented() -> list[str]:
    app = bare_app()
    app.include_router(agents.router)
    app.include_router(programs.for_agents)
    paths = app.openapi()["paths"]
    return [f"{method.upper()} {path}" for path, calls in paths.items() for method in calls]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("roles")) as made:
        agents.mount(made.app)
        programs.mount(made.app)
        yield made


@pytest.fixture(scope="module")
def client(here: World) -> Iterator[Client]:
    with here.client() as made:
        yield made


@pytest.fixture(scope="module")
def tokens(client: Client) -> dict[str, str]:
    found: dict[str, str] = {}
    for role in ROLES:
        body = {"name": f"t-{role}", "owner": f"o-{role}", "role": role}
        found[role] = client.post("/api/v1/tokens", json=body).json()["token"]
    return found


def test_every_call_has_its_role() -> None:
    assert set(documented()) - CALLS.keys() == set(), "say who may call it"


@pytest.mark.parametrize("call", documented())
def test_who_is_let_in(client: Client, tokens: dict[str, str], call: str) -> None:
    needed = CALLS[call]
    method, _, path = call.partition(" ")
    for part in ("run", "token", "checkpoint"):
        path = path.replace(f"{{{part}}}", "nobody")
    path = path.replace("{sha256}", "0" * 64)
    stranger = client.request(method, path, headers={"Authorization": ""})
    if needed != OPEN and stranger.status_code != 422:
        assert stranger.status_code == 401, stranger.text
    for role, token in tokens.items():
        answer = client.request(method, path, headers={"Authorization": f"Bearer {token}"})
        kind = answer.json()["type"] if "problem" in answer.headers.get("Content-Type", "") else ""
        told = (answer.status_code, kind.removeprefix(PREFIX))
        if needed in ROLES and ROLES.index(role) < ROLES.index(needed):
            assert told == (403, "role-too-low"), f"{role}: {answer.text}"
            assert f"the role {needed};" in answer.json()["detail"]
        elif needed == AGENT:
            assert answer.status_code in (401, 422), "no person's token is an agent's"
        else:
            assert told[1] not in ("role-too-low", "sign-in-needed"), f"{role}: {answer.text}"
            assert answer.status_code < 500
