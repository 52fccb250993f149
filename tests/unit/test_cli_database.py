"""A database that can not be used is told in words, before a service starts on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import service
from orchestrator.cli.main import app


@pytest.mark.parametrize("words", [["up", "--port", "0"], ["backup", "b.gz"], ["doctor"]])
def test_a_database_that_does_not_answer_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    url = "postgresql+psycopg://ada:secret@127.0.0.1:1/longhaul"
    monkeypatch.setenv("LONGHAUL_DATABASE_URL", url)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, "--data", str(tmp_path / "data")])
    assert done.exit_code == 1
    assert "127.0.0.1:1/longhaul can not be used" in done.output
    assert "Check LONGHAUL_DATABASE_URL" in done.output
    assert "secret" not in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("url", ["mysql://x/y", "no address"])
def test_another_kind_of_database_is_refused_with_the_form_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("LONGHAUL_DATABASE_URL", url)
    done = CliRunner().invoke(app, ["up", "--port", "0", "--data", str(tmp_path)])
    assert done.exit_code == 1
    assert "→ Write LONGHAUL_DATABASE_URL as" in done.output
    assert "Traceback" not in done.output


def test_settings_without_a_value_are_shown_in_words() -> None:
    assert service.shown("prices", {}) == "none"
    assert service.shown("allowed_hosts", ("a", "b")) == "a, b"
    assert service.shown("public_url", None) == "not set"
