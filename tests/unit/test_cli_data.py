"""`longhaul data` on the command line: what it says, as words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app


def call(*args: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["data", *(str(arg) for arg in args)])
    return done.exit_code, done.stdout, done.stderr


def test_text_becomes_shards_that_are_checked(tmp_path: Path) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("once upon a time " * 50)
    code, told, _ = call("prepare", text, "--out", out, "--workers", "1")
    assert code == 0, told
    assert "851 to train on, 0 held out" in told
    assert f"path: {out}" in told
    code, told, _ = call("check", out, "--json")
    found = json.loads(told)
    assert (code, found["tokens"], found["vocabulary"], found["highest"]) == (0, 851, 257, 256)
    (out / "train-00000.bin").write_bytes(b"x")
    code, _, told = call("check", out)
    assert code == 1
    assert "train-00000.bin has 1 bytes, and its manifest says 1,702" in told


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("prepare", "{}/no", "--out", "{}/out"), 1, "no cannot be read: No such file"),
        (("prepare", "{}", "--out", "{}/out", "--packing", "tight"), 2, "--packing: Input should"),
        (("check", "{}", "--dtype", "int8"), 2, "--dtype: Input should be"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    tmp_path: Path, args: tuple[str, ...], code: int, words: str
) -> None:
    ended, _, told = call(*(arg.format(tmp_path) for arg in args))
    assert (ended, words in told) == (code, True), told
