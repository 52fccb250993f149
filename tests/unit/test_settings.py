"""Settings: where they come from, and how a bad one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.settings import SettingsError, read_settings


def test_arguments_go_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "longhaul.toml").write_text("port = 1111\nprobe_seconds = 0.5\nmax_local_hosts=3")
    monkeypatch.setenv("LONGHAUL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LONGHAUL_PROBE_SECONDS", "0.75")
    settings = read_settings(port=2222)
    assert (settings.port, settings.probe_seconds, settings.max_local_hosts) == (2222, 0.75, 3)
    assert settings.data_dir == tmp_path


def test_the_file_of_the_folder_that_is_given_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "longhaul.toml").write_text("port = 1111")
    (other / "longhaul.toml").write_text("port = 3333")
    monkeypatch.setenv("LONGHAUL_DATA_DIR", str(tmp_path))
    assert read_settings(data_dir=other).port == 3333


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "no setting 'prot'"),
        ("port = 99999", "LONGHAUL_PORT"),
        ("port = [", "not valid TOML"),
        ("host = '0.0.0.0'", "not a loopback address"),
        ("host = 'example.org'", "SSH tunnel"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "longhaul.toml").write_text(text)
    with pytest.raises(SettingsError, match=words):
        read_settings(data_dir=tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_is_allowed(tmp_path: Path, host: str) -> None:
    assert read_settings(data_dir=tmp_path, host=host).host == host


def test_the_address_of_ipv6_has_brackets(tmp_path: Path) -> None:
    assert read_settings(data_dir=tmp_path, host="::1", port=1).url == "http://[::1]:1"


def test_folders_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings(data_dir=Path("here")).data_dir == tmp_path / "here"
