"""What must hold before something of a run is killed on purpose; on both databases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from orchestrator.state import RunState
from orchestrator.store import commands, tables
from tests.unit.api_world import (
    BEGAN,
    Client,
    World,
    seed_attempt,
    seed_checkpoint,
    seed_group,
    submitted,
)
from worker.protocol import Drill, Victim

DRILL = "/api/v1/runs/one/drill"
TRAINER = {"kill": "trainer"}


def trains(here: World, client: Client) -> str:
    run = submitted(client, "one")
    group = seed_group(here, run)
    seed_attempt(here, run, group, 1, first_step_at=BEGAN)
    here.change(run, state=RunState.RUNNING)
    with here.engine.begin() as connection:
        connection.execute(update(tables.hosts).values(protocol=3, running_attempt=1))
    return run


def refused(client: Client, **asked: Any) -> str:
    answer = client.post(DRILL, json=TRAINER | asked)
    assert answer.status_code == 409, answer.text
    assert answer.json()["hint"]
    return answer.json()["type"].rpartition("/")[2].rpartition(":")[2]


def test_a_drill_is_kept_with_its_attempt_and_told_once(here: World, client: Client) -> None:
    run = trains(here, client)
    seed_checkpoint(here, run, 1, 20)
    asked = client.post(DRILL, json={"kill": "agent", "reason": "it is Monday"})
    assert asked.status_code == 202, asked.text
    told = asked.json()
    assert (told["run"], told["attempt"], told["resumes_from_step"]) == (run, 1, 20)
    [attempt] = client.get("/api/v1/runs/one/attempts").json()["items"]
    assert (attempt["drill"], attempt["drill_at"]) == ("agent", told["asked_at"])
    with here.engine.connect() as connection:
        group = connection.scalar(select(tables.host_groups.c.name))
        given = commands.commands_for(connection, group, 0, "")
    assert given == (Drill(attempt=1, victim=Victim.AGENT),)
    assert "drill-under-way" in refused(client)
    [deed] = client.get("/api/v1/audit?action=run.drill").json()["items"]
    assert deed["after"]["kill"] == "agent"
    assert "drill_asked" in [
        event["kind"] for event in client.get("/api/v1/runs/one/events").json()["items"]
    ]


def test_a_run_that_could_lose_something_is_left_alone(here: World, client: Client) -> None:
    submitted(client, "two")
    answer = client.post("/api/v1/runs/two/drill", json=TRAINER | {"force": True})
    assert answer.json()["type"].endswith("nothing-runs"), "not even by force"
    run = trains(here, client)
    assert "no-checkpoint" in refused(client)
    seed_checkpoint(here, run, 1, 20)
    here.change(run, state=RunState.RECOVERING)
    assert "run-not-well" in refused(client)
    with here.engine.begin() as connection:
        connection.execute(update(tables.hosts).values(protocol=2))
    assert "agent-too-old" in refused(client, force=True)
    with here.engine.begin() as connection:
        connection.execute(update(tables.hosts).values(protocol=3))
    assert client.post(DRILL, json=TRAINER | {"force": True}).status_code == 202


def test_what_to_kill_must_be_said(client: Client) -> None:
    submitted(client, "one")
    for body in ({}, {"kill": "service"}):
        assert client.post(DRILL, json=body).status_code == 422
