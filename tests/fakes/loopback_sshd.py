"""A real sshd on a loopback port, for the user who runs the tests, with keys of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

PROGRAM = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Client:
    """One connection; fits `Connection` of the tunnel."""

    client: paramiko.SSHClient

    @property
    def transport(self) -> paramiko.Transport:
        found = self.client.get_transport()
        assert found is not None
        return found

    @property
    def alive(self) -> bool:
        found = self.client.get_transport()
        return found is not None and found.is_active()

    def close(self) -> None:
        self.client.close()


class Sshd:
    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = _free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("host", "user"):
            key = folder / name
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        self._config()

    def _config(self) -> None:
        lines = (
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.folder}/user.pub",
            f"PidFile {self.folder}/pid",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "MaxStartups 100",
            *self._options,
        )
        (self.folder / "conf").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        assert PROGRAM is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        argv = [PROGRAM, "-D", "-e", "-f", str(self.folder / "conf")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def sessions(self) -> list[int]:
        """The processes that serve one connection each."""
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def cut(self) -> None:
        """Every connection ends; new ones are taken."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        if self._process is not None:
            self.cut()
            self._process.kill()
            self._process.wait()
            self._process = None

    def connect(self) -> Client:
        client = paramiko.SSHClient()
        key = paramiko.Ed25519Key(filename=str(self.folder / "host"))
        client.get_host_keys().add(f"[127.0.0.1]:{self.port}", key.get_name(), key)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.connect(
            "127.0.0.1",
            port=self.port,
            key_filename=str(self.folder / "user"),
            allow_agent=False,
            look_for_keys=False,
            timeout=10,
        )
        return Client(client)


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Sshd]:
    folder.mkdir(parents=True, exist_ok=True)
    server = Sshd(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
