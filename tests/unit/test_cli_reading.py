"""What `runs` and `show` say of waiting runs and of what is no name; Ctrl-C at the start."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orchestrator.state import RunState
from tests.fakes import rest_service as fake
from tests.fakes.rest_service import FakeService
from tests.unit.test_cli_commands import LONGEST, call, done

WAITS = "2 hosts of provider local: 1 of 2 is held; 3 runs are ahead"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    queued = fake.run("demo-2m", state=RunState.QUEUED, waits_for=WAITS)
    made = FakeService(
        runs={"demo-2m": queued, LONGEST: fake.run(LONGEST)},
        attempts=[fake.recovered(), fake.crashed()],
    )
    with fake.served(made):
        monkeypatch.setenv("LONGHAUL_URL", made.url)
        monkeypatch.setenv("LONGHAUL_TOKEN", fake.TOKEN)
        yield made


def test_runs_say_what_queued_ones_wait_for(service: FakeService) -> None:
    head, *rows = done("runs").splitlines()
    assert head.endswith("WAITS FOR")
    assert [row.endswith(WAITS) for row in rows if "demo-2m" in row] == [True]


def test_on_a_terminal_the_words_fold(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    printed = done("runs")
    assert max(map(len, printed.splitlines())) <= 90
    assert "WAITS FOR" in printed


def test_show_says_what_a_queued_run_waits_for(service: FakeService) -> None:
    lines = [" ".join(line.split()) for line in done("show", "demo-2m").splitlines()]
    assert f"Waits for {WAITS}" in lines


def test_show_tells_revisions_and_branches_only_where_there_are_several(
    service: FakeService,
) -> None:
    printed = done("show", LONGEST)
    assert "Revision" not in printed
    assert "REVISION" not in printed
    assert "BRANCH" not in printed
    service.runs[LONGEST] = fake.run(LONGEST, revision=2, branch=3)
    service.attempts = [fake.crashed(), fake.recovered(revision=2, branch=3)]
    lines = [line.split() for line in done("show", LONGEST).splitlines()]
    assert ["Revision", "2,", "branch", "3"] in lines
    assert ["1", "1", "1", "crashed"] in [line[:4] for line in lines]
    assert ["2", "2", "3", "running"] in [line[:4] for line in lines]


@pytest.mark.parametrize("name", ["../../x", "", "a b", "x\x1b[31m"])
@pytest.mark.parametrize("command", ["show", "why", "checkpoints", "pause"])
def test_what_can_be_no_name_is_told_so(command: str, name: str) -> None:
    result = call(command, "--", name)
    assert result.exit_code == 3
    assert "There is no run named" in result.stderr
    assert "Names look like demo-1m" in result.stderr
    assert "\x1b" not in result.stderr


INTERRUPTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupts(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupts())
signal.signal(signal.SIGINT, eval(sys.argv.pop(1)))
from orchestrator.cli.__main__ import main
main()
"""


def started(handler: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", INTERRUPTED, handler, "--version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_ctrl_c_during_the_imports_ends_the_command_without_a_word() -> None:
    ended = started("signal.default_int_handler")
    assert ended.returncode == -signal.SIGINT
    assert (ended.stdout, ended.stderr) == ("", "")


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    ended = started("signal.SIG_IGN")
    assert ended.returncode == 0
    assert ended.stdout.startswith("longhaul ")


def test_show_says_how_often_is_saved_and_why(service: FakeService) -> None:
    why = "sqrt(2 x 1 s of stall x 24 h between failures) = 416 s"
    service.attempts[0] = fake.recovered(save_seconds=416.0, save_why=why)
    told = " ".join(done("show", "demo-2m").split())
    assert f"Attempt 2 saves every 6 min 56 s: {why}" in told


def test_show_says_what_is_slow(service: FakeService) -> None:
    why = "host 1 keeps the others waiting: of a step of 1 s its own work takes 0.98 s"
    service.runs["demo-2m"] = fake.run("demo-2m", slow=(why,))
    assert f"Slow: {why}" in " ".join(done("show", "demo-2m").split())
    assert "Slow" not in done("show", LONGEST)
