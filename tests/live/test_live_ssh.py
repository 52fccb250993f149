"""The contract of providers on a host that somebody owns: `make live PROVIDER=ssh`.

Agents and a fake trainer run there, and reach this machine through a tunnel. Nothing is left there
but what bootstrap put into ~/.longhaul, if it had to.
"""

from __future__ import annotations

import getpass
import io
import secrets
import shlex
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.providers.base import Provider
from orchestrator.providers.bootstrap import Installed
from orchestrator.providers.inventory import HostLogin
from orchestrator.providers.processes import RecordedProcess
from orchestrator.providers.software import Software
from orchestrator.providers.ssh import SshProvider
from orchestrator.providers.ssh_shell import SshShell
from orchestrator.providers.ssh_transport import Connections, Login, connect, shown_key
from orchestrator.providers.tunnels import Tunnels
from tests.contract import test_provider_contract as contract
from tests.fakes.ssh_stage import AGENT, InventoryStage
from tests.fakes.stage import GROUP
from tests.live.asked import asked, told

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "worker", "model", "tests")


@dataclass
class LiveHost:
    """`folder` is ours alone on it, and goes at the end."""

    login: HostLogin
    shell: SshShell
    folder: str
    python: str

    @property
    def there(self) -> Installed:
        return Installed(self.python, f"{self.folder}/there")

    def said(self, script: str, *words: str, stdin: bytes = b"") -> bytes:
        done = self.shell.run(["sh", "-c", script, "sh", *words], stdin)
        assert done.code == 0, (script, words, done.err.decode(errors="replace"))
        return done.out


def _login() -> HostLogin:
    where = asked("LIVE_SSH", "how the host is entered, as alice@gpu1.example.org:22")
    user, at, place = where.rpartition("@")
    address, _, port = place.partition(":")
    known = told("LIVE_SSH_HOST_KEY", "") or shown_key(address, int(port or 22))
    return HostLogin(
        user=user if at else getpass.getuser(),
        address=address,
        port=int(port or 22),
        host_key=known,
        key_file=told("LIVE_SSH_KEY", "") or None,
    )


def _tree() -> bytes:
    """This checkout's own packages; those that are not installed on hosts among them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in sorted(filter(None, listed.stdout.decode().split("\0"))):
            if (ROOT / name).is_file() and name.endswith((".py", ".sh")):
                archive.add(ROOT / name, name)
    return packed.getvalue()


@pytest.fixture(scope="module")
def live() -> Iterator[LiveHost]:
    login = _login()
    shell = connect(Login(login.user, login.address, login.host_key, login.port, login.key_file))
    home = shell.run(["sh", "-c", "cd && pwd"]).out.decode().strip()
    host = LiveHost(login, shell, f"{home}/.longhaul-live-{secrets.token_hex(4)}", "")
    try:
        host.said('mkdir -m 700 "$1" && cd "$1" && tar xzf -', host.folder, stdin=_tree())
        with tempfile.TemporaryDirectory() as folder:
            base = told("LIVE_SSH_PYTHON", "") or Software(Path(folder)).prepare(shell, "it").python
        host.python = f"{host.folder}/python"
        exports = f"export PYTHONPATH={shlex.quote(host.folder)}"
        wrapper = f'#!/bin/sh\n{exports}\nexec {shlex.quote(base)} "$@"\n'
        host.said('cat > "$1" && chmod 755 "$1"', host.python, stdin=wrapper.encode())
        yield host
    finally:
        shell.run(["rm", "-rf", host.folder])
        shell.close()


class LiveStage(InventoryStage):
    def __init__(self, root: Path, host: LiveHost) -> None:
        self.host = host
        self._tunnels: Tunnels | None = None
        root.mkdir()
        super().__init__(root, host.login, host.there, ExitStack())

    def made_provider(self) -> Provider:
        connections = Connections()
        self.stack.callback(connections.close)
        self._lead_here()
        return SshProvider(
            self.inventory,
            connections,
            self.prepare,
            self.plane.url,
            None,
            AGENT,
            self._url,
        )

    def _lead_here(self) -> None:
        login = self.host.login
        key = Login(login.user, login.address, login.host_key, login.port, login.key_file)
        port = int(self.plane.url.rpartition(":")[2])
        tunnels = Tunnels(lambda name: connect(key), ("127.0.0.1", port), lambda name, url: None)
        self.stack.callback(tunnels.close)
        self._tunnels = tunnels

    def _url(self, name: str) -> str:
        assert self._tunnels is not None
        return self._tunnels.url("it")  # all names are one host

    def move_control_plane(self) -> None:
        self.plane = type(self.plane)(self.book)
        self._lead_here()
        self.provider.announce(self.plane.url)

    def launch(self, *behaviour: str) -> None:
        lines = "\n".join(behaviour).encode()
        self.host.said('cat > "$1"', f"{self.folder}/trainer.args", stdin=lines)
        self.provider.launch(GROUP, 0, self.book.secret)

    def process(self, name: str) -> RecordedProcess | None:
        words = self.host.said('cat "$1"', f"{self.folder}/{name}.pid").split()
        return There(int(words[0]), int(words[1]), self.host)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        process = self.process(name)
        assert process is not None
        self.host.said('kill -"$1" "$2"', str(int(number)), str(process.pid))
        return process.pid


@dataclass(frozen=True)
class There(RecordedProcess):
    """A process of the host."""

    host: LiveHost

    @property
    def alive(self) -> bool:
        stat = self.host.said('cat "/proc/$1/stat" 2>/dev/null || :', str(self.pid)).decode()
        fields = stat.rpartition(")")[2].split()
        return bool(fields) and fields[0] not in "ZX" and int(fields[19]) == self.started


@pytest.fixture
def stage(live: LiveHost, tmp_path: Path) -> Iterator[LiveStage]:
    made = LiveStage(tmp_path / "hosts", live)
    yield made
    made.close()
    assert live.said('ls "$1" 2>/dev/null || :', str(made.groups)) == b""


@pytest.fixture
def provider(stage: LiveStage) -> Provider:
    return stage.provider


for _name, _test in vars(contract).items():
    if _name.startswith("test_"):
        globals()[_name] = _test
