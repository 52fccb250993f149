"""The service as a process: it starts, refuses a second one, stops by a signal, and comes back."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.client import Client
from tests.unit.api_world import tiny_spec

PATIENCE = 60.0


class Plane:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.process: subprocess.Popen[str] | None = None

    def up(self) -> None:
        self.process = self.start()
        deadline = time.monotonic() + PATIENCE
        while not self._ready():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "orchestrator.cli.main", "up", "--data", str(self.data)]
        return subprocess.Popen(
            [*command, "--port", "0", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            return httpx.get(f"{self.note['url']}/readyz", verify=False).status_code == 200
        return False

    @property
    def note(self) -> dict[str, Any]:
        note: dict[str, Any] = json.loads((self.data / "service.json").read_text())
        return note

    def client(self) -> httpx.Client:
        token = (self.data / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.note["url"], headers=headers, timeout=20)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


@pytest.fixture
def plane(data_dir: Path) -> Iterator[Plane]:
    made = Plane(data_dir)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.end(signal.SIGKILL)


def test_a_service_from_its_first_start_to_its_third(plane: Plane) -> None:
    plane.up()
    first = plane.note
    assert plane.process is not None
    assert first["pid"] == plane.process.pid

    second = plane.start()
    _, words = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert f"process {first['pid']}" in words
    assert "Traceback" not in words

    with plane.client() as client:
        refused = client.post("/api/v1/runs", json=tiny_spec(hosts=17, batch={"sequences": 17}))
        assert refused.status_code == 422
        assert client.get("/api/v1/runs").json()["items"] == []

    assert plane.end(signal.SIGKILL) == -signal.SIGKILL
    assert (plane.data / "service.json").exists()
    plane.up()
    assert plane.note["url"] == first["url"], "agents find it where it was"

    assert plane.end(signal.SIGTERM) == 0
    assert not (plane.data / "service.json").exists()
    plane.up()
    assert plane.note["url"] == first["url"]
    assert plane.end(signal.SIGINT) == 0


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for loopback that signs itself, and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-subj", "/CN=localhost", "-addext", names, "-days", "2"]
    subprocess.run(
        [*words, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True
    )
    return certificate, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_the_service_speaks_tls(
    plane: Plane, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_TLS_CERTIFICATE", str(certificate[0]))
    monkeypatch.setenv("LONGHAUL_TLS_KEY", str(certificate[1]))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    plane.up()
    assert plane.note["url"].startswith("https://127.0.0.1:")
    with Client.of(plane.data) as client:
        link = client.login_link().url
    assert link.startswith(f"{plane.note['url']}/login?code=")
    trusted = ssl.create_default_context(cafile=certificate[0])
    assert "Secure" in httpx.get(link, verify=trusted).headers["Set-Cookie"]
    plain = plane.note["url"].replace("https://", "http://")
    with pytest.raises(httpx.HTTPError):
        httpx.get(plain)
