"""Every command against a small real service: words, JSON and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter
from typer.testing import CliRunner, Result

from orchestrator.api.history_schemas import LogLine
from orchestrator.api.schemas import (
    CheckpointView,
    Facts,
    GoodputView,
    IncidentView,
    RunDetail,
    RunPage,
)
from orchestrator.cli import follow
from orchestrator.cli.checks import print_findings
from orchestrator.cli.main import app
from orchestrator.client import LoginLink
from orchestrator.providers.findings import Code, problem, well
from orchestrator.state import RunState
from tests.fakes import rest_service as fake
from tests.fakes.rest_service import FakeService

LONGEST = "a-name-as-long-as-a-name-can-ever-be-4-x"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    made = FakeService(
        runs={"demo-1m": fake.run(step=120, newest_checkpoint=fake.checkpoint(2, 100))},
        attempts=[fake.recovered(), fake.crashed()],
        checkpoints=[fake.checkpoint(1, 75), fake.checkpoint(2, 100)],
        incidents=[fake.incident()],
        logs=fake.log_lines(5),
    )
    with fake.served(made):
        monkeypatch.setenv("LONGHAUL_URL", made.url)
        monkeypatch.setenv("LONGHAUL_TOKEN", fake.TOKEN)
        monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)
        yield made


def call(*words: str, **options: object) -> Result:
    return CliRunner().invoke(app, words, **options)  # pyright: ignore[reportArgumentType]


def done(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


READING: list[tuple[Sequence[str], type[BaseModel] | TypeAdapter[object]]] = [
    (["runs"], RunPage),
    (["show", "demo-1m"], RunDetail),
    (["checkpoints", "demo-1m"], TypeAdapter(tuple[CheckpointView, ...])),
    (["goodput", "demo-1m"], GoodputView),
    (["link"], LoginLink),
    (["preflight", "demo-1m"], Facts),
    (["submit", "demo-1m"], RunDetail),
    (["pause", "demo-1m"], RunDetail),
    (["resume", "demo-1m"], RunDetail),
    (["cancel", "demo-1m", "--yes", "demo-1m"], RunDetail),
    (["rollback", "demo-1m", "--to", "75"], RunDetail),
    (["fork", "demo-1m", "--at", "75", "--name", "twin"], RunDetail),
    (["checkpoint", "demo-1m"], RunDetail),
    (["quarantine", "demo-1m", "a1-s75", "--reason", "bad disk"], RunDetail),
]


@pytest.mark.parametrize(("words", "kind"), READING, ids=lambda v: v[0] if type(v) is list else "")
def test_json_is_what_the_schemas_say(
    service: FakeService, words: Sequence[str], kind: type[BaseModel] | TypeAdapter[object]
) -> None:
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    adapter.validate_json(done(*words, "--json"))


def test_why_in_json_holds_the_incident(service: FakeService) -> None:
    story = json.loads(done("why", "demo-1m", "--json"))
    assert IncidentView.model_validate(story["incident"]) == fake.incident()
    assert story["needs_person"] is False


def test_logs_in_json_are_lines(service: FakeService) -> None:
    lines = done("logs", "demo-1m", "--json").splitlines()
    assert [LogLine.model_validate_json(line) for line in lines] == service.logs


@pytest.mark.parametrize("words", [words for words, _ in READING[:6]] + [["why", "demo-1m"]])
@pytest.mark.parametrize("width", [80, 120])
def test_what_is_printed_fits(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, words: list[str], width: int
) -> None:
    service.runs[LONGEST] = fake.run(LONGEST, attempts=14, state=RunState.RECOVERING)
    monkeypatch.setenv("COLUMNS", str(width))
    printed = done(*words)
    assert printed.strip()
    assert max(len(line) for line in printed.splitlines()) <= width
    assert "\x1b" not in printed


@pytest.mark.parametrize("columns", [None, "80", "50"])
def test_names_are_never_cut(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    service.runs[LONGEST] = fake.run(LONGEST, attempts=14, state=RunState.RECOVERING)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert LONGEST in done("runs").split()


def test_piped_tables_keep_every_column_and_no_trailing_blanks(service: FakeService) -> None:
    printed = done("runs")
    assert printed.splitlines()[0].split() == [
        "NAME", "STATE", "STEP", "LOSS", "TO", "GO", "ATTEMPTS", "GOODPUT", "SUBMITTED",
    ]  # fmt: skip
    assert all(line == line.rstrip() for line in printed.splitlines())


def test_no_runs_says_how_to_make_one(service: FakeService) -> None:
    service.runs.clear()
    assert "longhaul submit demo-1m" in done("runs")


def test_a_waiting_run_is_pointed_at(service: FakeService) -> None:
    service.runs["stuck"] = fake.run("stuck", state=RunState.PAUSED, needs_person=True)
    printed = done("runs")
    assert "◆ paused" in printed
    assert "longhaul why stuck" in printed


def test_show_tells_the_attempts_in_order(service: FakeService) -> None:
    printed = done("show", "demo-1m")
    assert printed.index("crashed") < printed.index("running", printed.index("VERDICT"))
    assert "step 120 of 200 (60%)" in printed
    assert "a2-s100, accepted, 12.6 MB" in printed


def test_why_tells_the_story(service: FakeService) -> None:
    printed = done("why", "demo-1m")
    assert "This run needs nobody." in printed
    order = ["Seen", "Concluded", "Done by Longhaul", "Left to do", "How to tell"]
    places = [printed.index(title) for title in order]
    assert places == sorted(places)
    # Oldest first, whatever the order of the evidence.
    assert printed.index("last step 91") < printed.index("trainer exited, signal 9")


def test_why_tells_of_what_stopped_nothing(service: FakeService) -> None:
    differs = fake.incident(number=2, opened_at=fake.after(900), stopped=False, lost_seconds=0.0)
    service.incidents = [fake.incident(), differs]
    printed = done("why", "demo-1m")
    assert "Nothing stopped for it." in printed
    assert "It cost" not in printed


def test_why_gives_the_one_command(service: FakeService) -> None:
    service.runs["demo-1m"] = fake.run(
        state=RunState.PAUSED, needs_person=True, reason="6 crashes in a row"
    )
    left = {"left": ("look at the trainer's last lines",), "command": "longhaul resume demo-1m"}
    waits = fake.incident(number=2, attempt=7, needs_person=True, closed_at=None, **left)
    service.incidents = [fake.incident(opened_at=fake.after(900)), waits]
    printed = done("why", "demo-1m")
    assert "6 crashes in a row" in printed
    assert "→ longhaul resume demo-1m" in printed
    assert "needs nobody" not in printed


def test_why_without_incidents(service: FakeService) -> None:
    service.incidents = []
    assert "Nothing has gone wrong so far." in done("why", "demo-1m")
    assert json.loads(done("why", "demo-1m", "--json"))["incident"] is None


@pytest.mark.parametrize(
    ("state", "says"), [("succeeded", "It has succeeded at"), ("running", "It is running at")]
)
def test_why_says_how_the_run_stands(service: FakeService, state: str, says: str) -> None:
    service.runs["demo-1m"] = fake.run(state=RunState(state))
    assert says in done("why", "demo-1m")


def test_why_says_a_state_once(service: FakeService) -> None:
    service.runs["demo-1m"] = fake.run(state=RunState.CANCELLED, reason="cancelled")
    assert re.search(r"It is cancelled at step .*\d\.$", done("why", "demo-1m"), re.MULTILINE)


def test_a_run_is_not_at_100_percent_before_its_last_step(service: FakeService) -> None:
    service.runs["demo-1m"] = fake.run(step=199)
    assert "step 199 of 200 (99%)" in done("show", "demo-1m")


def test_logs_follow_every_page(service: FakeService) -> None:
    printed = [line.split("  ")[-1] for line in done("logs", "demo-1m").splitlines()]
    assert printed == [f"line {i}" for i in range(5)]
    assert "line 3" not in done("logs", "demo-1m", "--tail", "1")
    assert done("logs", "demo-1m", "--attempt", "2") == ""


def test_logs_cannot_steer_the_terminal(service: FakeService) -> None:
    service.logs = [
        line.model_copy(update={"line": "\x1b[2Ja\x1b]0;title\x07b\x9bc\r\td\u202e"})
        for line in fake.log_lines(1)
    ]
    assert done("logs", "demo-1m").split("  ")[-1] == "abc\td\n"


def test_logs_follow_to_the_runs_end(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.logs.LOOK_SECONDS", 0.01)
    service.script.extend([(fake.run(), ()), (fake.done(), ())])
    service.logs = fake.log_lines(3)
    assert len(done("logs", "demo-1m", "-f").splitlines()) == 3
    assert not service.script


def test_submit_prints_what_was_made_and_what_to_do(service: FakeService) -> None:
    service.runs.clear()
    printed = done("submit", "demo-1m", "--set", "steps=50", "--set", "batch.sequences=8")
    assert "Submitted demo-1m (" in printed
    assert "longhaul watch demo-1m" in printed
    assert service.submitted[0]["steps"] == 50
    assert service.submitted[0]["batch"] == {"sequences": 8, "microbatches": 1}
    assert service.submitted[0]["model"] == {"preset": "demo-1m"}
    assert len(service.keys) == 1


def test_a_presets_name_is_made_free(service: FakeService) -> None:
    assert "Submitted demo-1m-2 (" in done("submit", "demo-1m")
    assert "Submitted demo-1m-3 (" in done("submit", "demo-1m")


def test_a_name_that_was_asked_for_is_kept(service: FakeService) -> None:
    result = call("submit", "demo-1m", "--name", "demo-1m")
    assert result.exit_code == 3
    assert "The name is taken" in result.stderr


def test_a_refused_spec_names_field_line_and_fix(service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel: demo-1m\nsteps: 5\nbatch:\n  sequences: -4\n")
    service.refuse = fake.problem()
    result = call("submit", str(path))
    assert result.exit_code == 3
    assert result.stdout == ""
    told = result.stderr
    assert "The spec cannot be run" in told
    assert re.search(r"/batch/sequences +\(.*mine\.yaml, line 5\)", told)
    assert "must be greater than 0, but is -4" in told
    assert "→ Give a positive number, for example 16." in told


def test_an_unknown_field_is_placed_at_what_should_hold_it(
    service: FakeService, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel: demo-1m\nsteps: 5\nbatch:\n  sequences: 4\n")
    result = call("submit", str(path), "--set", "batch.colour=red")
    assert result.exit_code == 3
    assert re.search(r"/batch/colour +\(.*mine\.yaml, line 4\)", result.stderr)


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_submit_waits_for_the_end(service: FakeService, state: str, code: int) -> None:
    queued = fake.run("mine", 0, state=RunState.QUEUED, attempt=None, attempts=0)
    service.script.extend([(queued, ()), (fake.done("mine", state=RunState(state)), ())])
    result = call("submit", "demo-1m", "--name", "mine", "--wait")
    assert result.exit_code == code, result.output
    assert state in result.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["show", "nope"], 3),
        (["watch", "nope"], 3),
        (["submit", "nope"], 2),
        (["submit"], 2),
        (["frobnicate"], 2),
        (["runs", "--limit", "0"], 2),
        (["cancel", "demo-1m", "--yes", "demo"], 2),
        (["cancel", "demo-1m"], 2),
        (["up", "--port", "70000"], 2),
    ],
)
def test_exit_codes(service: FakeService, words: list[str], code: int) -> None:
    result = call(*words)
    assert result.exit_code == code, result.output
    assert result.stderr


def test_cancel_asks_and_changes_nothing_without_the_exact_name(service: FakeService) -> None:
    call("cancel", "demo-1m", "--yes", "demo-1")
    assert not any(path.endswith("/cancel") for _, path in service.asked)
    run = service.runs["demo-1m"]
    done("cancel", "demo-1m", "--yes", run.id)
    assert service.asked[-1] == ("POST", f"/api/v1/runs/{run.id}/cancel")


def test_a_resume_carries_what_was_given(service: FakeService) -> None:
    done(
        *("resume", "demo-1m", "--from", "75", "--skip-batches", "8", "--reason", "a spike"),
        *("--set", "batch.microbatches=2", "--set", "hosts=2", "--expect-revision", "1"),
    )
    done("resume", "demo-1m", "--from", "a1-s75")
    assert service.asked_for == [
        {
            "from": 75,
            "skip_batches": 8,
            "reason": "a spike",
            "set": {"batch.microbatches": 2, "hosts": 2},
            "expected_revision": 1,
        },
        {"from": "a1-s75", "skip_batches": 0, "set": {}},
    ]


def test_a_pause_of_a_paused_run_does_not_promise_a_save(service: FakeService) -> None:
    assert "is asked to save and stop" in done("pause", "demo-1m")
    service.runs["demo-1m"] = fake.run(state=RunState.PAUSED)
    assert "demo-1m stays paused." in done("pause", "demo-1m")


def test_logs_say_so_when_no_line_fits(service: FakeService) -> None:
    service.logs = []
    assert "There are no lines yet." in call("logs", "demo-1m").stderr
    asked = call("logs", "demo-1m", "--grep", "zzz", "--json")
    assert (asked.stdout, asked.stderr) == ("", "No line fits.\n")


def test_an_owner_is_told_where_there_are_several(service: FakeService) -> None:
    assert "OWNER" not in done("runs")
    service.runs["twin"] = fake.run(name="twin", owner="ada")
    assert re.search(r"twin .* ada$", done("runs"), re.MULTILINE)
    assert re.search(r"^Submitted .* by ada$", done("show", "twin"), re.MULTILINE)


def test_an_address_without_a_scheme_is_refused_in_words(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_URL", "127.0.0.1:8700")
    refused = call("runs")
    assert refused.exit_code == 2
    assert "like http://127.0.0.1:8700" in refused.stderr


def test_a_rollback_says_where_it_goes_and_what_is_next(service: FakeService) -> None:
    printed = done("rollback", "demo-1m", "--to", "0")
    assert "demo-1m goes back to step 0, on branch 2." in printed
    assert "→ See what it can begin at: longhaul checkpoints demo-1m" in printed
    assert service.asked_for == [{"to": 0, "skip_batches": 0}]


def test_a_fork_is_sent_under_one_key(service: FakeService) -> None:
    words = ("fork", "demo-1m", "--at", "a1-s75", "--name", "twin", "--set", "seed=5")
    printed = done(*words)
    assert "twin (9f) begins at a1-s75 of demo-1m." in printed
    assert "longhaul watch twin" in printed
    assert service.asked_for == [{"at": "a1-s75", "name": "twin", "set": {"seed": 5}}]
    assert len(service.keys) == 1


def test_single_checkpoints_are_asked_for_and_set_apart(service: FakeService) -> None:
    assert "longhaul checkpoints demo-1m" in done("checkpoint", "demo-1m")
    printed = done("quarantine", "demo-1m", "a1-s75", "--reason", "bad disk")
    assert "a1-s75 of demo-1m is in quarantine" in printed
    assert service.asked[-1][1].endswith("/checkpoints/a1-s75/quarantine")
    assert service.asked_for[-1] == {"reason": "bad disk"}


@pytest.mark.parametrize(
    "words",
    [
        ["rollback", "demo-1m"],
        ["rollback", "demo-1m", "--to", "-5"],
        ["fork", "demo-1m", "--at", "75", "--name", "Not A Name"],
        ["fork", "demo-1m", "--at", "75"],
        ["resume", "demo-1m", "--set", "steps"],
        ["resume", "demo-1m", "--skip-batches", "-1"],
        ["resume", "demo-1m", "--skip-batches", "1000000"],
        ["quarantine", "demo-1m", "a1-s75"],
        ["quarantine", "demo-1m", "a1-s75", "--reason", " "],
    ],
    ids=" ".join,
)
def test_what_can_not_be_meant_is_refused_before_anything_is_sent(
    service: FakeService, words: list[str]
) -> None:
    assert call(*words).exit_code == 2
    assert not any(method == "POST" for method, _ in service.asked)


def test_resume_keeps_the_reason(service: FakeService) -> None:
    shown = RunDetail.model_validate_json(
        done("resume", "demo-1m", "--reason", "fixed the disk", "--json")
    )
    assert shown.reason == "fixed the disk"


@pytest.mark.parametrize("words", [["runs"], ["submit", "demo-1m"], ["watch", "a"], ["link"]])
def test_an_unreachable_service_says_how_to_start_it(tmp_path: Path, words: list[str]) -> None:
    result = call(*words, "--data", str(tmp_path))
    assert result.exit_code == 4
    assert f"longhaul up --data {tmp_path}" in result.stderr
    (tmp_path / "service.json").write_text('{"url": "http://127.0.0.1:9"}')
    result = call(*words, "--data", str(tmp_path))
    assert result.exit_code == 4
    assert "http://127.0.0.1:9" in result.stderr


def test_a_wrong_token_is_refused(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_TOKEN", "wrong")
    assert call("runs").exit_code == 3


def test_doctor_tells_settings_and_checks(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LONGHAUL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LONGHAUL_DATABASE_URL", "postgresql+psycopg://me:hush@db/longhaul")
    result = call("doctor", "--json")
    told = json.loads(result.stdout)
    assert told["settings"]["data_dir"] == str(tmp_path)
    assert {check["name"]: check["ok"] for check in told["checks"]} == {
        "data folder": True,
        "disk": True,
        "trainer": True,
        "service": True,
    }
    assert "hush" not in result.output
    assert "hush" not in done("doctor")


def test_doctor_tells_of_what_is_set_for_other_hosts(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LONGHAUL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LONGHAUL_PYTHON_ARCHIVE", str(tmp_path / "python.tar.gz"))
    monkeypatch.setenv("LONGHAUL_WHEELHOUSE", str(tmp_path))
    result = call("doctor")
    assert result.exit_code == 1
    assert "python.tar.gz is not there" in result.stdout
    assert "no wheels there" in result.stdout
    (tmp_path / "python.tar.gz").write_bytes(b"")
    (tmp_path / "one-1.0-py3-none-any.whl").write_bytes(b"")
    assert "1 wheels in" in done("doctor")


def test_findings_of_hosts_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        well(Code.DISK, "gpu-1:/work", "500.0 GiB free"),
        problem(Code.CLOCK, "gpu-1", "its clock is \x1b[31m1.0 h off", "timedatectl set-ntp true"),
    ]
    assert print_findings(findings[:1], as_json=False)
    assert not print_findings(findings, as_json=False)
    told = capsys.readouterr().out
    assert "✕  clock  gpu-1" in told
    assert "→ timedatectl set-ntp true" in told
    assert "\x1b" not in told
    assert not print_findings(findings, as_json=True)
    [_, clock] = json.loads(capsys.readouterr().out)
    assert (clock["code"], clock["level"]) == ("clock", "problem")


def test_doctor_finds_no_service(tmp_path: Path) -> None:
    result = call("doctor", "--data", str(tmp_path))
    assert result.exit_code == 4
    assert "longhaul up" in result.stdout


def test_a_bad_setting_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_PORT", "many")
    result = call("doctor")
    assert result.exit_code == 2
    assert "LONGHAUL_PORT" in result.stderr


def test_presets_are_listed() -> None:
    assert "demo-1m" in done("presets")
    listed = {preset["name"]: preset for preset in json.loads(done("presets", "--json"))}
    assert listed["koda-1.3b"]["parameters"] == 1_269_209_088
    assert listed["koda-1.3b"]["fits"] == "TPU v4 or v6e"
    assert listed["demo-1m"]["fits"] == "any CPU"


def test_help_is_light() -> None:
    """Start-up stays instant: no command's own imports happen before it is called."""
    heavy = "{'fastapi', 'sqlalchemy', 'httpx', 'pydantic', 'rich', 'yaml', 'jax', 'uvicorn'}"
    script = (
        "import sys; from typer.testing import CliRunner; from orchestrator.cli.main import app;"
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0;"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_client_commands_never_load_the_service(service: FakeService) -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from orchestrator.cli.main import app;"
        "result = CliRunner().invoke(app, ['show', 'demo-1m']); assert result.exit_code == 0;"
        "print(sorted({'fastapi', 'sqlalchemy', 'uvicorn', 'jax'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_every_command_and_option_is_explained() -> None:
    names = re.findall(r"^  ([a-z]+)  ", call("--help").stdout, re.MULTILINE)
    assert {"up", "demo", "submit", "runs", "watch", "why", "doctor"} <= set(names)
    for name in names:
        printed = done(name, "--help")
        assert "..." not in printed.split("Options:")[1], name
