"""One service per data folder: locks, ports, and the note that tells where it is."""

from __future__ import annotations

import json
import os
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.instance import AlreadyRunning, CannotStart, bound, check_tls, claimed, noted
from orchestrator.settings import Settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def settings_in(folder: Path, **given: object) -> Settings:
    return Settings.model_validate({"data_dir": folder, "port": 0} | given)


def test_a_folder_has_one_service_at_a_time(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "a" / "b")
    with claimed(settings):
        assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
        with (
            noted(settings, "1.0", NOW),
            pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"),
            claimed(settings),
        ):
            pass
    with claimed(settings):
        pass


def test_a_database_file_has_one_service_at_a_time(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first, second = (settings_in(tmp_path / name, database_url=url) for name in ("a", "b"))
    with claimed(first), pytest.raises(AlreadyRunning), claimed(second):
        pass
    with claimed(second):
        pass


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="--data"), claimed(settings_in(tmp_path / "file" / "x")):
        pass


def test_the_port_of_last_time_comes_again_unless_it_is_taken(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with bound(settings) as first:
        port = first.getsockname()[1]
    with bound(settings) as again:
        assert again.getsockname()[1] == port
        with bound(settings) as other:
            assert other.getsockname()[1] != port


def test_a_port_that_was_asked_for_and_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"Port {port} .* in use"):
            bound(settings_in(tmp_path, port=port))


def test_the_note_stands_while_the_service_does(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, port=4321)
    with noted(settings, "1.0", NOW):
        note = json.loads((tmp_path / "service.json").read_text())
        assert (note["url"], note["pid"]) == ("http://127.0.0.1:4321", os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    here = {"data_dir": tmp_path, "tls_certificate": tmp_path / "c.pem"}
    check_tls(Settings(data_dir=tmp_path))
    for content in (None, "no certificate"):
        if content:
            (tmp_path / "c.pem").write_text(content)
        with pytest.raises(CannotStart, match=r"c\.pem.*k\.pem can not be used"):
            check_tls(Settings(**here, tls_key=tmp_path / "k.pem"))
