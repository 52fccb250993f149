"""`drill` and `drain` on the command line: what is asked before, and what is told after."""

from __future__ import annotations

import json
from collections import deque
from datetime import timedelta
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.api.history_schemas import EventView
from orchestrator.cli import drain, drill
from orchestrator.cli.main import app
from orchestrator.state import RunState
from tests.fakes import rest_service as fake
from tests.fakes.rest_service import FakeService
from tests.unit.test_cli_commands import service  # noqa: F401 - a fixture

NAMES = ("import", "init", "restore", "compile", "train")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(drain, "LOOK_SECONDS", 0.01)


def entered(name: str, seconds: float, attempt: int = 2) -> EventView:
    body = {"phase": name}
    return EventView(id=1, attempt=attempt, rank=0, kind="phase", at=fake.after(seconds), body=body)


def test_where_the_time_went() -> None:
    gone = fake.attempt(1, ended_at=fake.after(10.5))
    back = fake.attempt(2, created_at=fake.after(11), first_step_at=fake.after(14))
    cold = [entered(name, 11.5 + number * 0.5) for number, name in enumerate(NAMES)]
    others = [entered("train", 1, attempt=1), entered("eval", 20), entered("train", 21)]
    found = drill.phases(fake.after(10), gone, back, [*cold, *others])
    assert found == {
        "detect": 0.5,
        "decide": 0.5,
        "spawn": 0.5,
        "import": 0.5,
        "init": 0.5,
        "restore": 0.5,
        "compile": 0.5,
        "first_step": 0.5,
    }
    spare = drill.phases(fake.after(10), gone, back, [entered("restore", 10.9)])
    assert (spare["import"], spare["init"], spare["first_step"]) == (0, 0, 3.0)
    assert sum(spare.values()) == 4


def drilled(service: FakeService, **changes: Any) -> None:  # noqa: F811
    """The run comes back at once; `changes` are those of its second attempt."""
    at = fake.START + timedelta(seconds=10)
    service.drilled = {
        "run": service.runs["demo-1m"].id,
        "attempt": 1,
        "kill": "trainer",
        "asked_at": at,
        "resumes_from_step": 75,
    }
    service.attempts = [fake.recovered(**changes), fake.crashed()]
    service.events = [entered("train", 40)]


def test_it_reports_how_the_run_came_back(service: FakeService) -> None:  # noqa: F811
    drilled(service)
    result = call("drill", "demo-1m", "--kill", "trainer", "--yes")
    assert result.exit_code == 0, result.output
    assert "demo-1m came back in" in result.stdout
    assert "first_step" in result.stdout
    told = json.loads(call("drill", "demo-1m", "--kill", "trainer", "--yes", "--json").stdout)
    assert told["recovered"]
    assert (told["attempt"], told["next_attempt"], told["verdict"]) == (1, 2, "crashed")


def test_it_wants_to_be_meant(service: FakeService) -> None:  # noqa: F811
    drilled(service)
    result = call("drill", "demo-1m", "--kill", "host")
    assert result.exit_code == 2
    assert "longhaul drill demo-1m --kill host --yes" in result.output
    assert "count as lost" in " ".join(result.output.split())
    assert not [path for _, path in service.asked if path.endswith("drill")]
    assert call("drill", "demo-1m", "--kill", "service", "--yes").exit_code == 2


def test_a_run_that_does_not_come_back_is_a_failure(service: FakeService) -> None:  # noqa: F811
    drilled(service)
    service.attempts = [fake.crashed()]
    service.runs["demo-1m"] = fake.run(
        state=RunState.PAUSED, needs_person=True, reason="6 crashes in a row"
    )
    result = call("drill", "demo-1m", "--kill", "trainer", "--yes")
    assert result.exit_code == 1
    assert "has not come back: 6 crashes in a row" in result.stdout
    assert "longhaul why demo-1m" in result.stdout


def looks(*names: str) -> deque[dict[str, Any]]:
    """A drain whose runs leave one after another."""
    runs = [{"id": name, "name": name, "state": "running", "group": f"g-{name}"} for name in names]
    return deque(
        {
            "host": "gpu1",
            "provider": "ssh",
            "reason": "a new fan",
            "asked_by": "ada",
            "asked_at": fake.START,
            "done": not runs[number:],
            "runs": runs[number:],
        }
        for number in range(len(runs) + 1)
    )


def test_a_drain_waits_until_everybody_has_left(service: FakeService) -> None:  # noqa: F811
    waits = {"state": RunState.RECOVERING, "waits_for": "1 host of provider ssh"}
    service.runs["demo-1m"] = fake.run(**waits)
    service.drains = looks("demo-1m")
    result = call("drain", "gpu1", "--reason", "a new fan")
    assert result.exit_code == 0, result.output
    assert "gpu1 is empty, and nobody gets it (a new fan)." in result.stdout
    assert "waits for 1 host of provider ssh" in result.stdout
    assert "longhaul hosts uncordon gpu1" in result.stdout
    service.drains = looks("demo-1m")
    told = json.loads(call("drain", "gpu1", "--json").stdout)
    assert told["done"]
    assert [one["name"] for one in told["left"]] == ["demo-1m"]
    service.drains = looks("demo-1m")
    asked = call("drain", "gpu1", "--no-wait")
    assert "there is still: demo-1m" in asked.stdout
    assert len(service.drains) == 1, "it was asked once"
