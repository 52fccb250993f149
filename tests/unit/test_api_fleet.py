"""Hosts over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store import tables
from tests.unit.api_world import Client, World, at, seed_group, tiny_spec, world


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, currency="EUR") as made:
        yield made


def test_hosts_are_told_with_their_run_their_agent_and_their_cost(
    client: Client, here: World
) -> None:
    run = client.post("/api/v1/runs", json=tiny_spec()).json()["id"]
    gone = {"state": "gone", "released_at": at(1800), "ready_at": at(0), "created_at": at(0)}
    seed_group(here, run, 1, price_per_hour=2.0, **gone)
    name = seed_group(here, run, 2, price_per_hour=2.0, ready_at=at(100), created_at=at(90))
    with here.engine.begin() as connection:
        h = tables.hosts
        seen = {"last_seen_at": at(3695), "protocol": 2, "running_attempt": 4}
        connection.execute(h.update().where(h.c.group == name).values(**seen))
    here.clock.at = at(3700)
    page = client.get("/api/v1/hosts").json()
    [group] = page["items"]
    assert (group["name"], group["run"], group["run_name"]) == (name, run, "tiny")
    assert (group["price_per_hour"], group["cost"], page["currency"]) == (2.0, 2.0, "EUR")
    [host] = group["hosts"]
    assert (host["protocol"], host["running_attempt"], host["address"]) == (2, 4, "127.0.0.1")
    both = client.get("/api/v1/hosts?gone=true&limit=1").json()
    assert both["items"][0]["name"] == name
    older = client.get(f"/api/v1/hosts?gone=true&limit=1&cursor={both['next_cursor']}").json()
    assert (older["items"][0]["cost"], older["next_cursor"]) == (1.0, None)
    assert client.get("/api/v1/hosts?cursor=x").status_code == 422
