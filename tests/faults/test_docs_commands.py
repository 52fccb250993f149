"""Every command line of the README and the docs is typed here.

Most are run for real, in the order of the pages, against one service with one small run of the
README's own spec; of lines that differ in a reason or a number alone, the first. Once the run has
trained and is paused, the machine is drained, so that what is resumed, rolled back or forked waits
in the queue and costs nothing. The rest is only parsed: which, and why, is listed below. A line
that is neither fails.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from orchestrator.cli.main import app
from tests.faults.harness import ROOT, Plane, until
from tests.faults.outcome import checkpoints

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
NAMES = {"my-text", "my-run", "RUN"}  # what the pages call a run

# Lines that are only parsed, by how they begin, and why.
PARSED = {
    "up": "the service that all others talk to is started by the fixture",
    "drill": "kills a trainer; test_drill does that for real",
    "drain gpu1": "wants a host that is entered by SSH; `drain local` runs below",
    "hosts add": "wants a host that is entered by SSH (tests/contract/test_api_inventory.py)",
    "hosts doctor": "the same",
    "hosts cordon": "the same",
    "hosts uncordon gpu1": "the same; `hosts uncordon local` runs below",
    "hosts remove": "the same",
    "import gs:": "wants a bucket (tests/faults/test_import.py and test_cloud_storage.py)",
    "data": "wants text of one's own (tests/unit/test_cli_data.py, test_worker_prepare.py)",
    "submit juliagpt-5m": "wants the shards that `data prepare` makes (test_prepared_data.py)",
    "logs my-text -f": "follows until the run is over (tests/unit/test_cli_follow.py)",
}
# What other programs of the pages are there for; nothing of them is ours to try.
OTHERS = {
    "export": "the path of one's shell",
    "curl": "the REST API (tests/unit/test_api_runs.py), and a fake's faults",
    "pip": "wheels from a package index",
    "ssh-keygen": "a key of one's own",
    "ssh-copy-id": "a host of one's own",
    ".venv/bin/python": "a fake for development (tests/contract/test_fake_gcs.py)",
}
# Answers that say no, and rightly.
MAY_FAIL = {
    "doctor": "tells what this machine lacks, and is 1 then",
    "watch": "is 1 for a run that did not succeed, as this one is paused",
}
# Options whose value is any text or number: lines that differ in it alone are run once.
ANY_VALUE = {"--reason", "--tail", "--grep", "--to", "--from", "--at", "--skip-batches", "--set"}
RESTING = ("resume", "rollback", "fork", "watch")  # the run is paused before these


def lines() -> list[list[str]]:
    """The words of each different line of the shell blocks, in order, without settings before."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    found.setdefault(" ".join(_as_named(words)), _as_named(words))
    return list(found.values())


def _as_named(words: list[str]) -> list[str]:
    return ["my-text" if word in NAMES else word for word in words]


def ours(first: str) -> list[list[str]]:
    return [words[1:] for words in lines() if words[0] == first]


def is_parsed(words: list[str]) -> bool:
    line = " ".join(words)
    return any(line == one or line.startswith((f"{one} ", f"{one}/")) for one in PARSED)


def run_for_real() -> list[list[str]]:
    """In order, without those that differ from an earlier one in a value alone."""
    found: dict[tuple[str, ...], list[str]] = {}
    for words in ours("longhaul"):
        if not is_parsed(words):
            pairs = zip(["", *words], words, strict=False)
            form = (word.partition("=")[0] if "=" in word else "" for word in words)
            kept = (
                path if before in ANY_VALUE else word
                for (before, word), path in zip(pairs, form, strict=True)
            )
            found.setdefault(tuple(kept), words)
    return list(found.values())


def test_every_line_is_known_and_no_excuse_is_left_over() -> None:
    assert {words[0] for words in lines()} <= {"longhaul", "make", *OTHERS}
    typed = [" ".join(words) for words in ours("longhaul")]
    for excuse in PARSED:
        assert any(line.startswith(excuse) for line in typed), f"nobody types {excuse!r} any more"
    assert len(run_for_real()) > 30


@pytest.mark.parametrize("words", [*filter(is_parsed, ours("longhaul"))], ids=" ".join)
def test_a_line_that_is_not_run_can_be_typed(words: list[str]) -> None:
    name, *rest = words
    command: Any = COMMANDS[name]
    if (nested := vars(command).get("commands")) and rest:
        name, *rest = rest
        command = nested[name]
    command.make_context(name, list(rest)).close()


def test_the_targets_can_be_made() -> None:
    """All of them at once and without doing it: to start make takes longer than to ask it."""
    words = list(dict.fromkeys(word for line in ours("make") for word in line))
    targets = [word for word in words if "=" not in word]
    assert len(targets) > 8
    made = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout


# ---- for real ----------------------------------------------------------------------------------


class Reader:
    """Types what the pages say, one line after another."""

    def __init__(self, service: Plane, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.service, self.folder, self.patch = service, folder, patch
        self.run, self.step, self.restored = "", 0, 0

    def type(self, words: list[str]) -> None:
        name = words[0]
        if self.step and name in RESTING and self._state() != "paused":
            self._pause()
        if name == "restore":
            self.restored += 1
            self.patch.setenv("LONGHAUL_DATA_DIR", str(self.folder / f"restored-{self.restored}"))
        given = self._placed(words)
        try:
            result = CliRunner().invoke(app, given)
        finally:
            self.patch.setenv("LONGHAUL_DATA_DIR", str(self.service.data))
        allowed = {0, 1} if name in MAY_FAIL else {0}
        assert result.exit_code in allowed, f"longhaul {shlex.join(given)}: {result.output}"
        assert result.output.strip()

    def _placed(self, words: list[str]) -> list[str]:
        """With a checkpoint that there is, and folders of the test's own."""
        given = list(words)
        for number, word in enumerate(words):
            if word in ("--to", "--at", "--from"):
                given[number + 1] = str(self.step)
            if word == "DIR":
                given[number] = str(self.folder / f"restored-{self.restored}")
        return given

    def _pause(self) -> None:
        self.service.call("POST", f"runs/{self.run}/pause")
        until(lambda: self._state() == "paused", "the pause")

    def _state(self) -> str:
        return self.service.get(f"runs/{self.run}")["state"]


@contextlib.contextmanager
def drained(service: Plane) -> Iterator[None]:
    """Nothing starts meanwhile, nor afterwards."""
    env = ["--data", str(service.data)]
    result = CliRunner().invoke(app, ["drain", "local", "--reason", "only words", *env])
    assert result.exit_code == 0, result.output
    try:
        yield
    finally:
        service.clear()
        result = CliRunner().invoke(app, ["hosts", "uncordon", "local", *env])
        assert result.exit_code == 0, result.output


@pytest.fixture
def reader(service: Plane, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """In a folder with `my-text.yaml`: the README's spec, as small as a test can have it."""
    words = text.read_text().splitlines()
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text("\n".join(words[number::60]))
    [spec] = re.findall(r"^```yaml\n(.*?)^```$", PAGES[0].read_text(), re.MULTILINE | re.DOTALL)
    small = {"context": 32, "layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 64}
    small |= {"steps": 1_000_000, "every_steps": 100}
    for field, value in small.items():
        spec = re.sub(rf"(\b{field}: )\d+", rf"\g<1>{value}", spec)
    assert "/data/my-text" in spec
    spec = spec.replace("/data/my-text", str(tmp_path / "text"))
    (tmp_path / "my-text.yaml").write_text(spec)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGHAUL_DATA_DIR", str(service.data))
    return Reader(service, tmp_path, monkeypatch)


def test_the_lines_do_what_they_say(reader: Reader) -> None:
    real = run_for_real()
    first = [words for words in real if words[0] in ("preflight", "submit")]
    for words in first:
        reader.type(words)
    reader.run = reader.service.get("runs/my-text")["id"]
    saved = until(lambda: _accepted(reader), "a checkpoint", 180, every=0.3)
    wants_training = [words for words in real if words[0] == "checkpoint"]
    for words in wants_training:
        reader.type(words)
    reader.step = saved
    reader.type(["pause", "my-text"])
    until(lambda: reader.service.get("runs/my-text")["state"] == "paused", "the pause")
    with drained(reader.service):
        for words in real:
            if words not in (*first, *wants_training):
                reader.type(words)


def _accepted(reader: Reader) -> int:
    found = checkpoints(reader.service, reader.run)
    return max((one["step"] for one in found if one["state"] != "written"), default=0)
