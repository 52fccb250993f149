"""What hosts are given: packed once, and a Python for those that have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.providers.archives import NoArchive, local_copy
from orchestrator.providers.interpreters import Interpreter, chosen
from orchestrator.providers.software import Software
from orchestrator.providers.wheelhouse import Bundle, pins
from tests.fakes.local_shell import LocalShell

URI = "gs://bucket/pythons/cpython-3.11.tar.gz"


def test_a_file_is_its_own_copy(tmp_path: Path):
    path = tmp_path / "python.tar.gz"
    with pytest.raises(NoArchive, match="which is no file"):
        local_copy(str(path), tmp_path)
    path.write_bytes(b"x")
    assert local_copy(str(path), tmp_path) == path


def test_an_object_is_fetched_once(tmp_path: Path):
    fetched: list[str] = []

    def download(uri: str, path: Path) -> None:
        fetched.append(uri)
        path.write_bytes(b"an archive")

    kept = local_copy(URI, tmp_path / "kept", download)
    assert kept.name.endswith("-cpython-3.11.tar.gz")
    assert kept.read_bytes() == b"an archive"
    assert local_copy(URI, tmp_path / "kept", download) == kept
    assert fetched == [URI]


def test_half_an_object_is_none(tmp_path: Path):
    def breaks(uri: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise NoArchive("the connection was lost")

    with pytest.raises(NoArchive):
        local_copy(URI, tmp_path / "kept", breaks)
    assert list((tmp_path / "kept").iterdir()) == []


def test_the_bundle_is_packed_at_the_first_call_alone(tmp_path: Path):
    packed: list[Path | None] = []

    def pack(_folder: Path, wheels: Path | None) -> Bundle:
        packed.append(wheels)
        return Bundle(tmp_path / "0.tar", "0" * 64)

    software = Software(tmp_path / "software", wheels=tmp_path, pack=pack)
    shell = LocalShell(tmp_path / "host")
    venv = shell.home / ".longhaul" / "venvs" / f"{'0' * 24}-gpu"
    shell.python("python", folder=venv / "bin")
    (venv / "whole.json").write_text(f'{{"bundle": "{"0" * 64}"}}')
    for _ in range(2):
        installed = software.prepare(shell, "gpu-1", "gpu")
        assert (installed.python, installed.made) == (f"{venv}/bin/python", False)
    assert packed == [tmp_path]


def test_pins_are_the_lock_without_hashes():
    lock = (
        "a==1 ; sys_platform == 'linux' \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nb==2\n"
    )
    assert pins(lock) == "a==1 ; sys_platform == 'linux'\nb==2\n"


def python(version: tuple[int, int, int], **more: object) -> Interpreter:
    return Interpreter(f"/bin/{version}", version, **more)  # pyright: ignore[reportArgumentType]


def test_hosts_tend_to_the_services_own_python():
    found = [python((3, 13, 0)), python((3, 12, 1)), python((3, 11, 7))]
    assert [chosen(found, first=minor) for minor in ((3, 11), (3, 12), (3, 13))] == found[::-1]
    assert chosen(found[:2], first=(3, 11)) == found[1]


@pytest.mark.parametrize(
    "unfit",
    [
        python((3, 10, 12)),
        python((3, 14, 0)),
        python((3, 12, 1), missing=("ssl",)),
        python((3, 12, 1), bits=32),
    ],
    ids=str,
)
def test_what_does_not_fit_is_not_chosen(unfit: Interpreter):
    assert chosen([unfit]) is None
