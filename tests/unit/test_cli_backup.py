"""`backup` and `restore` on the command line: what they say, and what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.instance import claimed
from orchestrator.settings import Settings
from orchestrator.store import migrate
from orchestrator.store.engine import open_engine


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    engine = open_engine(f"sqlite:///{folder / 'longhaul.db'}")
    migrate.upgrade(engine)
    with engine.begin() as connection:
        migrate.ensure_installation(connection, datetime.now(UTC))
    engine.dispose()
    return folder


def call(*args: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    return done.exit_code, done.output


def test_a_backup_is_restored_into_another_folder(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.gz"
    code, told = call("backup", file, "--data", data)
    assert (code, "1 rows of installation" in told) == (0, True)
    code, told = call("backup", file, "--data", data)
    assert (code, "exists already" in told) == (1, True)
    code, told = call("restore", file, "--data", tmp_path / "new")
    assert (code, "longhaul orphans" in told) == (0, True)
    assert (tmp_path / "new" / "longhaul.db").exists()


def test_a_restore_under_a_running_service_is_refused(data: Path, tmp_path: Path) -> None:
    call("backup", tmp_path / "b.gz", "--data", data)
    with claimed(Settings(data_dir=data)):
        code, told = call("restore", tmp_path / "b.gz", "--data", data, "--force")
    assert (code, "already works on" in told) == (1, True)


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_what_is_not_there_is_told_in_words(tmp_path: Path, command: str) -> None:
    code, told = call(command, tmp_path / "none.gz", "--data", tmp_path / "nowhere")
    assert code == 1
    assert "There is no" in told
