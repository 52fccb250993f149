"""Drills and drains of real processes: what is killed or sent away comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from tests.faults.harness import Plane, processes, tiny_job, until
from tests.faults.outcome import Told, attempts, check_outcome, verdicts
from tests.faults.test_killed_anywhere import while_training

PHASES = ["detect", "decide", "spawn", "import", "init", "restore", "compile", "first_step"]


def told(service: Plane, *words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*words, "--json", "--data", str(service.data)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("kill", "verdict"),
    [
        ("trainer", "crashed"),
        pytest.param("agent", "crashed", marks=pytest.mark.soak),
        pytest.param("host", "host_lost", marks=pytest.mark.soak),
    ],
)
def test_a_drill_tells_how_the_run_came_back(
    service: Plane, text: Path, undisturbed: Callable[[int], Told], kill: str, verdict: str
) -> None:
    expected = undisturbed(1)
    name = f"drill-{kill}"
    run = service.submit(tiny_job(name, text))
    while_training(service, run)
    agent = processes(service.data, "worker.agent")
    outcome = told(service, "drill", name, "--kill", kill, "--yes", "--reason", "it is Monday")
    assert outcome["recovered"], outcome
    assert (outcome["attempt"], outcome["next_attempt"]) == (1, 2)
    assert outcome["verdict"] == verdict
    assert outcome["resumed_from_step"] >= 12
    assert list(outcome["phases"]) == PHASES
    assert sum(outcome["phases"].values()) == pytest.approx(outcome["seconds"], abs=0.01)
    assert outcome["bit_identical"] is (True if outcome["replayed_steps"] else None)
    check_outcome(service, run, expected, 2)
    assert (processes(service.data, "worker.agent") == agent) is False, "the run is over"
    [incident] = service.get(f"runs/{run}/incidents")["items"]
    assert incident["drill"]
    assert incident["headline"].startswith("Drill: ")
    assert incident["concluded"].startswith("A drill: ")
    seen = [one["text"] for one in incident["seen"]]
    assert f"a drill was asked for: kill the {kill} of attempt 1" in seen
    killed = attempts(service, run)[0]
    assert killed["drill"] == kill
    groups = {one["group"] for one in attempts(service, run)}
    assert len(groups) == (2 if kill == "host" else 1)


@pytest.mark.soak
def test_a_drained_machine_is_left_and_taken_again(
    service: Plane, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    expected = undisturbed(2)
    run = service.submit(tiny_job("drained", text, hosts=2))
    while_training(service, run)
    drained = told(service, "drain", "local", "--reason", "a new kernel")
    assert drained["done"]
    [left] = drained["left"]
    assert (left["name"], left["needs_person"]) == ("drained", False)
    assert "drained (a new kernel)" in left["waits_for"]
    assert not processes(service.data, "worker.agent")
    result = CliRunner().invoke(app, ["hosts", "uncordon", "local", "--data", str(service.data)])
    assert result.exit_code == 0, result.output
    check_outcome(service, run, expected, 2)
    assert verdicts(service, run) == ["superseded", "completed"]
    first, second = attempts(service, run)
    assert second["resumed_from_step"] == first["last_step"], "it was saved where it stood"
    until(lambda: not service.get(f"runs/{run}/incidents")["items"], "no incident")
