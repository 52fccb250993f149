"""Settings: where they come from, and how a bad one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        ("port = 99999", r"LONGHAUL_PORT\) does not fit: Must be 65535 or less, and is 99999\.$"),
        ("port = 'abc'", r"LONGHAUL_PORT\) does not fit: Must be a whole number\.$"),
        ("port = [", "not valid TOML"),
        ("public_url = 'longhaul.example.org'", "public_url.*address alone"),
        ("public_url = 'https://u:p@h.example'", "address alone"),
        ("public_url = 'https://h.example/path'", "address alone"),
        ("trusted_proxies = ['10.0.0.0/8', 'proxy']", "'proxy' is no address"),
        ("tls_certificate = '/c.pem'", "set together"),
        ("ssh_ports = '80-90'", "two ports above 1023"),
        ("ssh_ports = '30000-20000'", "the lower one first"),
        ("webhook_url = 'ftp://h.example/'", "begins with https://"),
        ("webhook_url = 'https://h.example/hook'", "to sign its messages with"),
        ("webhook_secret = 's'\nwebhook_secret_file = '/f'", "Set one of them"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "longhaul.toml").write_text(text)
    with pytest.raises(SettingsError, match=words):
        read_settings(data_dir=tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_is_allowed(tmp_path: Path, host: str) -> None:
    assert read_settings(data_dir=tmp_path, host=host).host == host


@pytest.mark.parametrize(
    ("given", "clear"),
    [
        ({}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "192.0.2.7", "public_url": "http://longhaul.example.org"}, True),
        ({"host": "192.0.2.7", "public_url": "https://longhaul.example.org"}, False),
        ({"host": "192.0.2.7", "tls_certificate": "/c.pem", "tls_key": "/k.pem"}, False),
    ],
)
def test_it_is_known_whether_tokens_travel_in_the_clear(
    tmp_path: Path, given: dict[str, str], clear: bool
) -> None:
    assert read_settings(data_dir=tmp_path, **given).in_the_clear is clear


def test_the_address_of_ipv6_has_brackets(tmp_path: Path) -> None:
    assert read_settings(data_dir=tmp_path, host="::1", port=1).url == "http://[::1]:1"


def test_folders_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings(data_dir=Path("here")).data_dir == tmp_path / "here"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"host": "0.0.0.0"}, "http://127.0.0.1:1"),
        ({"host": "::"}, "http://[::1]:1"),
        ({"host": "10.0.0.5"}, "http://10.0.0.5:1"),
        ({"public_url": "https://h.example/"}, "http://127.0.0.1:1"),
        ({"tls_certificate": "/c", "tls_key": "/k"}, "https://127.0.0.1:1"),
        (
            {"tls_certificate": "/c", "tls_key": "/k", "public_url": "https://H.example:1/"},
            "https://h.example:1",
        ),
    ],
)
def test_where_this_machine_finds_the_service(tmp_path: Path, given: Any, url: str) -> None:
    assert read_settings(data_dir=tmp_path, port=1, **given).url == url


@pytest.mark.parametrize(
    ("given", "exposed"),
    [
        ({}, False),
        ({"public_url": "http://localhost:8700"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "10.0.0.5"}, True),
        ({"public_url": "https://h.example"}, True),
        ({"allowed_hosts": ("h.example",)}, True),
        ({"trusted_proxies": ("127.0.0.1",)}, True),
    ],
)
def test_a_service_that_others_can_reach_is_exposed(
    tmp_path: Path, given: Any, exposed: bool
) -> None:
    assert read_settings(data_dir=tmp_path, **given).exposed is exposed


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    given = {"webhook_url": "https://h.example/hush-url", "webhook_secret": "hush-secret"}
    settings = read_settings(data_dir=tmp_path, **given)
    assert "hush" not in f"{settings} {settings!r} {settings.model_dump()}"
