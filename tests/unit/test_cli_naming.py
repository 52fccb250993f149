"""Beginnings of names are enough to read, a wrong name suggests the near one, a shell completes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.main import app
from orchestrator.state import RunState
from tests.fakes import rest_service as fake
from tests.fakes.rest_service import FakeService
from tests.unit.api_world import submitted, world
from tests.unit.test_cli_commands import service  # noqa: F401 - a fixture


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture
def house(service: FakeService) -> FakeService:  # noqa: F811
    service.runs = {
        name: fake.run(name, id=f"{number}{name[:3]}0", state=RunState.RUNNING)
        for number, name in enumerate(("demo-1m", "demo-2m", "tern"))
    }
    return service


@pytest.mark.parametrize("command", ["show", "why", "checkpoints", "goodput", "logs"])
def test_a_unique_beginning_is_enough_to_read(house: FakeService, command: str) -> None:
    for given in ("te", "2t"):
        result = call(command, given)
        assert result.exit_code == 0, result.output
        assert any("/runs/2ter0" in path for _, path in house.asked)


def test_a_beginning_of_several_is_refused_with_their_names(house: FakeService) -> None:
    result = call("show", "demo")
    assert result.exit_code == 3
    assert "begins 2 names: demo-1m, demo-2m." in result.output
    assert call("show", "demo-1m").exit_code == 0, "a whole name is never ambiguous"


def test_whoever_changes_something_says_the_whole_name(house: FakeService) -> None:
    for words in (
        ["pause", "te"],
        ["cancel", "te", "--yes", "te"],
        ["rollback", "te", "--to", "1"],
    ):
        assert call(*words).exit_code == 3
    assert not [path for method, path in house.asked if method == "POST" and "2ter0" in path]


def test_the_service_suggests_near_names(tmp_path: Path) -> None:
    with world(tmp_path) as here, here.client() as client:
        for name in ("demo-1m", "demo-2m", "tern"):
            submitted(client, name)

        def hint(asked: str) -> str:
            answer = client.get(f"/api/v1/runs/{asked}")
            assert answer.status_code == 404
            return answer.json()["hint"]

        assert hint("dmeo-1m").startswith("Did you mean demo-1m or demo-2m? ")
        assert hint("ter").startswith("Did you mean tern? ")
        assert hint("zzz").startswith("List the runs")
        wish = client.post("/api/v1/runs/trn/pause")
        assert wish.json()["hint"].startswith("Did you mean tern? ")
        assert hint("x" * 3000).startswith("List the runs")


def completed(*words: str, shell: str = "bash") -> list[str]:
    """What a shell would offer for the last of the words."""
    env = {
        "_LONGHAUL_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": " ".join(("longhaul", *words)),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(app, [], env=env, prog_name="longhaul")
    return result.stdout.split()


def test_commands_options_and_runs_are_completed(house: FakeService) -> None:
    assert completed("dra") == ["drain"]
    assert {"show", "submit"} <= set(completed("s"))
    assert completed("drill", "demo-1m", "--kill", "tr") == ["trainer"]
    assert completed("hosts", "unc") == ["uncordon"]
    assert completed("show", "de") == ["demo-1m", "demo-2m"]
    assert completed("pause", "te") == ["tern"]
    assert completed("why", "2t") == ["2ter0"]
    assert completed("rollback", "demo-1m", "--") != []


def test_a_service_that_is_away_completes_nothing_in_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LONGHAUL_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LONGHAUL_TOKEN", "t")
    assert completed("show", "de") == []
    monkeypatch.delenv("LONGHAUL_URL")
    monkeypatch.setenv("LONGHAUL_DATA_DIR", str(tmp_path))
    assert completed("show", "de") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_installed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "yes")
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = CliRunner().invoke(app, ["--show-completion", shell], prog_name="longhaul")
    assert shown.exit_code == 0, shown.output
    assert "_LONGHAUL_COMPLETE" in shown.stdout
    done = CliRunner().invoke(app, ["--install-completion", shell], prog_name="longhaul")
    assert done.exit_code == 0, done.output
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "_LONGHAUL_COMPLETE" in written
    if shell == "bash":
        script = tmp_path / "completion.sh"
        script.write_text(shown.stdout)
        ask = ["bash", "--norc", "-c", f"source {script} && complete -p longhaul"]
        known = subprocess.run(ask, capture_output=True, text=True, timeout=20)
        assert "_longhaul_completion" in known.stdout, known.stderr
