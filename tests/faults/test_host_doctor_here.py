"""Doctor on this machine as a host: real ports, folders, clocks, open devices, an HTTP server."""

from __future__ import annotations

import ast
import contextlib
import http.server
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.providers.findings import Code, Finding, Level
from orchestrator.providers.host_doctor import Look, examined
from orchestrator.providers.on_host import facts
from orchestrator.providers.shared_folder import shared
from tests.fakes.local_shell import LocalShell, Lost

ON_HOST = Path(__file__).parents[2] / "orchestrator" / "providers" / "on_host"


@pytest.fixture
def host(tmp_path: Path) -> LocalShell:
    shell = LocalShell(tmp_path / "host")
    shell.python()
    (tmp_path / "dev").mkdir()
    return shell


def look(tmp_path: Path, **more: object) -> Look:
    return Look("gpu-1", dev=str(tmp_path / "dev"), tunnel=True, free_bytes=1, **more)  # pyright: ignore[reportArgumentType]


def of(findings: tuple[Finding, ...], code: Code) -> Finding:
    [finding] = [one for one in findings if one.code is code]
    return finding


@pytest.fixture
def port() -> Iterator[int]:
    """One that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_good_host(host: LocalShell, tmp_path: Path):
    findings = examined(host, look(tmp_path))
    assert [one.level for one in findings] == [Level.WELL] * len(findings)
    assert of(findings, Code.DISK).where == f"gpu-1:{host.home}/.longhaul"
    assert not (host.home / ".longhaul").exists()


def test_a_wrong_python(host: LocalShell, tmp_path: Path):
    host.old_python("3.10.12")
    findings = examined(host, look(tmp_path))
    python = of(findings, Code.PYTHON)
    assert python.level is Level.PROBLEM
    assert python.what == f"no Python 3.11 to 3.13; it has Python 3.10.12 at {host.bin}/python3"
    assert of(findings, Code.DISK).well  # the older one can still look around
    later = of(examined(host, look(tmp_path, has_archive=True)), Code.PYTHON)
    assert later.level is Level.WARNING


def test_a_python_that_was_built_without_parts(host: LocalShell, tmp_path: Path):
    answer = """case "$*" in *version_info*) printf '3.12.1\\t64\\tctypes,ssl\\n'; exit;; esac"""
    host.python("python3", answer)
    python = of(examined(host, look(tmp_path)), Code.PYTHON)
    assert python.level is Level.PROBLEM
    assert python.what.endswith("built without ctypes, ssl")


def test_no_python_at_all(tmp_path: Path):
    [python] = examined(LocalShell(tmp_path / "host"), look(tmp_path))
    assert (python.code, python.level) == (Code.PYTHON, Level.PROBLEM)
    assert python.what.endswith("it has no Python at all")


def test_a_clock_that_is_an_hour_off(host: LocalShell, tmp_path: Path):
    findings = examined(host, look(tmp_path), now=lambda: time.time() - 3600)
    assert of(findings, Code.CLOCK).what.startswith("its clock is 60 min ahead of")


def test_a_taken_port_and_who_has_it(host: LocalShell, tmp_path: Path, port: int):
    finding = of(examined(host, look(tmp_path, ports=(port, port))), Code.PORTS)
    assert finding.level is Level.PROBLEM
    assert f"taken: {port} by " in finding.what
    assert "unseen" not in finding.what


def test_a_device_that_somebody_has_open(host: LocalShell, tmp_path: Path):
    device = tmp_path / "dev" / "accel0"
    device.write_text("")
    with device.open() as held, subprocess.Popen(["sleep", "60"], stdin=held) as process:
        try:
            findings = examined(host, look(tmp_path))
        finally:
            process.kill()
    assert of(findings, Code.DEVICES).what == str(device)
    busy = of(findings, Code.DEVICE_BUSY)
    assert busy.where == f"gpu-1:{device}"
    assert f"sleep ({process.pid}, of " in busy.what
    assert not [one for one in examined(host, look(tmp_path)) if one.code is Code.DEVICE_BUSY]


SMI = (
    'case "$*" in',
    '*query-gpu*) echo "0, GPU-a, NVIDIA H100 80GB HBM3, 81559, 71000";;',
    '*compute-apps*) echo "GPU-a, $PPID";;',
    "esac",
)


def test_gpus_as_nvidia_smi_tells_them(host: LocalShell, tmp_path: Path):
    host.program("nvidia-smi", *SMI)
    findings = examined(host, look(tmp_path))
    assert of(findings, Code.DEVICES).what == "GPU 0 NVIDIA H100 80GB HBM3"
    busy = of(findings, Code.DEVICE_BUSY)  # here by the script that asks
    assert busy.where == "gpu-1:GPU 0"
    assert re.fullmatch(r"in use by python\S* \(\d+, of \S+\)", busy.what)


def test_a_folder_that_can_not_be_written(host: LocalShell, tmp_path: Path):
    (host.home / "file").write_text("")
    finding = of(examined(host, look(tmp_path, folder=f"{host.home}/file/work")), Code.DISK)
    assert (finding.level, finding.what) == (Level.PROBLEM, "this user can not write there")


@contextlib.contextmanager
def answering(body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_control_plane_within_reach():
    with answering(b'{"installation": "abc"}') as url:
        assert facts.reach(url) == {"trouble": None, "installation": "abc"}
        assert facts.reach(f"{url}/elsewhere")["trouble"] == "http"
    with answering(b"hello") as url:
        assert facts.reach(url)["words"] == "what answers there is no Longhaul"


def test_a_control_plane_out_of_reach(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(facts, "REACH_SECONDS", 0.3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert facts.reach(f"http://127.0.0.1:{closed.getsockname()[1]}")["trouble"] == "refused"
    assert facts.reach(f"http://127.0.0.1:{port}")["trouble"] == "timeout"
    assert facts.reach("http://longhaul.invalid")["trouble"] == "name"


def test_the_way_to_the_control_plane_is_judged(host: LocalShell):
    """A loopback address leads to the host itself, whatever answers there."""
    found = examined(host, Look("gpu-1", url="http://127.0.0.1:1", free_bytes=1, dev="/nowhere"))
    assert of(found, Code.ROUTE).level is Level.PROBLEM
    found = examined(host, Look("gpu-1", url="http://longhaul.invalid", free_bytes=1))
    assert "can not resolve its name" in of(found, Code.CONTROL_PLANE).what


def test_a_lost_connection(host: LocalShell, tmp_path: Path):
    [finding] = examined(Lost(host, 1), look(tmp_path))
    assert (finding.code, finding.level) == (Code.CONNECTION, Level.PROBLEM)


# ---- a folder that all hosts share ---------------------------------------------------------------


def test_a_shared_folder(tmp_path: Path):
    hosts = {name: LocalShell(tmp_path / name) for name in ("a", "b", "c")}
    folder = tmp_path / "checkpoints"
    findings = shared(hosts, str(folder))
    assert [(one.where, one.well) for one in findings] == [
        (f"b:{folder}", True),
        (f"c:{folder}", True),
    ]
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_another_one_on_each_host(tmp_path: Path):
    here = LocalShell(tmp_path / "a")
    elsewhere = LocalShell(tmp_path / "b")
    # The other machine's disk: the same path leads to another folder there.
    elsewhere.program("cat", "exit 1")
    [finding] = shared({"a": here, "b": elsewhere}, str(tmp_path / "checkpoints"))
    assert (finding.code, finding.level) == (Code.SHARED_STORAGE, Level.PROBLEM)
    assert finding.what == "it is another folder than on a: what was written there is not seen here"
    assert "gs://" in (finding.hint or "")


def test_a_folder_of_one_host_is_a_warning(tmp_path: Path):
    [finding] = shared({"a": LocalShell(tmp_path / "a")}, str(tmp_path / "checkpoints"))
    assert finding.level is Level.WARNING


def test_a_folder_that_can_not_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    hosts = {name: LocalShell(tmp_path / name) for name in ("a", "b")}
    [finding] = shared(hosts, str(tmp_path / "file" / "checkpoints"))
    assert (finding.where.split(":")[0], finding.level) == ("a", Level.PROBLEM)
    assert finding.what.startswith("can not be written: ")


def test_a_bucket_is_shared(tmp_path: Path):
    assert all(one.well for one in shared({"a": LocalShell(tmp_path / "a")}, "gs://bucket/runs"))


# ---- what runs on hosts --------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(ON_HOST.glob("*.py")), ids=lambda path: path.name)
def test_scripts_for_hosts_can_be_read_by_python_3_8(script: Path):
    ast.parse(script.read_text(), feature_version=(3, 8))


OLDER = [
    path
    for path in (Path.home() / ".pyenv" / "versions").glob("*/bin/python3")
    if path.parts[-3].startswith(("3.8.", "3.9.", "3.10."))
]


def test_older_pythons_look_around_too(tmp_path: Path, port: int):
    """Those of this machine, in one test: it may have none."""
    for number, python in enumerate(OLDER):
        shell = LocalShell(tmp_path / str(number))
        (shell.bin / "python3").symlink_to(python)
        findings = examined(shell, look(tmp_path, ports=(port, port)))
        assert of(findings, Code.PYTHON).level is Level.PROBLEM
        assert of(findings, Code.DISK).well
        assert f"taken: {port} by " in of(findings, Code.PORTS).what


def test_the_shell_scripts_need_no_bash(tmp_path: Path):
    dash = shutil.which("dash")
    for script in ON_HOST.glob("*.sh"):
        subprocess.run([dash or "sh", "-n", script], check=True)
