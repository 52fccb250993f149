"""`token` and `audit` on the command line, and the token file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.main import app
from tests.fakes import rest_service as fake
from tests.fakes.rest_service import FakeService

NEW = ("token", "create", "--name", "ci", "--role", "operator", "--owner", "ada")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    with fake.served(FakeService()) as made:
        monkeypatch.setenv("LONGHAUL_URL", made.url)
        monkeypatch.setenv("LONGHAUL_TOKEN", fake.TOKEN)
        yield made


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_the_output_is_the_token_alone(service: FakeService) -> None:
    result = call(*NEW, "--expires", "30d")
    assert result.exit_code == 0, result.output
    assert result.stdout == "lh_secret\n"
    assert "Token 1abc of ada, operator, expires 2026-04-03" in result.stderr


@pytest.mark.parametrize(
    ("expires", "kept"),
    [("never", None), ("12h", "2026-03-04T22:00:00Z"), ("45m", "2026-03-04T10:45:00Z")],
)
def test_how_long_it_lasts(service: FakeService, expires: str, kept: str | None) -> None:
    result = call(*NEW, "--expires", expires, "--json")
    assert json.loads(result.stdout)["expires_at"] == kept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*NEW, "--expires", "soon"], "--expires does not fit"),
        ([*NEW, "--expires", "9999d"], "--expires does not fit: Must be 315360000 or less"),
        ([*NEW, "--name", "No Name"], "→ Names are lower-case letters, digits and dashes"),
        ([*NEW, "--owner", "two words"], "--owner does not fit: Does not have the form ^[a-z0-9]"),
        ([*NEW, "--role", "king"], "'--role': 'king' is not one of 'viewer'"),
    ],
)
def test_what_does_not_fit_is_told_before_the_service_is_asked(
    service: FakeService, words: list[str], said: str
) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert service.asked == []


def test_tokens_are_listed_and_revoked(service: FakeService) -> None:
    printed = call("token", "list").stdout
    assert printed.splitlines()[0].split() == [
        "ID",
        "NAME",
        "OWNER",
        "ROLE",
        "STANDS",
        "LAST",
        "USED",
    ]
    assert "revoked" in printed
    [brief] = [line for line in printed.splitlines() if "brief" in line]
    assert re.search(r"until \d{4}-\d\d-\d\d \d\d:\d\d ", brief), "the day alone says too little"
    assert call("token", "revoke", "ci").exit_code == 0
    assert call("token", "revoke", "other").exit_code == 3
    assert ("DELETE", "/api/v1/tokens/ci") in service.asked


def test_the_audit_log_is_shown_without_what_steers_a_terminal(service: FakeService) -> None:
    printed = call("audit", "--actor", "ada").stdout
    assert "198.51.100.7" in printed
    assert "desired pause" in printed
    assert "11:00:00+00:00" in " ".join(printed.split())
    assert "\x1b" not in printed


def test_a_token_file_is_used(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LONGHAUL_TOKEN")
    (tmp_path / "mine").write_text(fake.TOKEN)
    assert call("runs").exit_code == 3
    assert call("--token-file", str(tmp_path / "mine"), "runs").exit_code == 0
    missing = call("--token-file", str(tmp_path / "none"), "runs")
    assert missing.exit_code == 2
    assert "can not be read" in missing.stderr
