"""What is wrong with a host reaches a person in the same words by `doctor` and by `why`.

The provider, its inventory, the checks and the store are the real ones; the hosts are an sshd on
this machine where they must refuse to be entered, and else programs that run here.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from rich.console import Console

from orchestrator.api.schemas import IncidentView, RunDetail
from orchestrator.cli.why import newest, why_parts
from orchestrator.clock import SystemClock
from orchestrator.inventory import Inventory, SshHouse
from orchestrator.providers import interpreters
from orchestrator.providers.base import ProvisionRefused
from orchestrator.providers.bootstrap import Installed
from orchestrator.providers.findings import Code, Finding, problems
from orchestrator.providers.host_checks import HostChecks
from orchestrator.providers.host_devices import Devices
from orchestrator.providers.inventory import HostLogin, InventoryHost
from orchestrator.providers.shell import Shell
from orchestrator.providers.ssh import SshProvider
from orchestrator.providers.ssh_shell import SshShell
from orchestrator.providers.ssh_transport import Connections, Login, connect
from orchestrator.providers.tunnels import Tunnels
from orchestrator.reconcile.plan import MakeGroup, MoveRun
from orchestrator.reconcile.rules import reconcile
from orchestrator.records import HostRequest
from orchestrator.state import RunCause
from orchestrator.store import group_writes
from orchestrator.store.engine import reading
from orchestrator.store.writer import Writer
from tests.contract.conftest import House
from tests.fakes.local_shell import LocalShell
from tests.fakes.ssh_hosts import LoopbackHost, loopback_host, make_key, write_python
from tests.unit.api_world import World, world

pytestmark = pytest.mark.sshd
GPU = "NVIDIA H100"
SMI = (
    'case "$*" in',
    f'*query-gpu=name*) echo "{GPU}";;',
    f'*query-gpu*) echo "0, GPU-a, {GPU}, 81559, 71000";;',
    '*compute-apps*) echo "GPU-a, $PPID";;',
    "esac",
)


class Here(LocalShell):
    """Programs of this machine in place of a connection."""

    where, alive = "here", True

    def ask(self, argv: tuple[str, ...], line: bytes, seconds: float) -> bytes:
        return self.run(argv, line + b"\n", seconds).out

    def close(self) -> None:
        """It stays as it is."""


@dataclass
class Site:
    """Two hosts of an inventory, and what is wrong with them."""

    here: World
    sshd: LoopbackHost
    key: Path
    root: Path
    stack: ExitStack
    control_url: str
    user: str = ""
    host_key: str = ""
    device: Devices = field(default_factory=lambda: Devices("cpu", 1))
    entered: bool = False
    checks: dict[str, Any] = field(default_factory=dict[str, Any])
    shells: dict[str, Here] = field(default_factory=dict[str, Here])

    def __post_init__(self) -> None:
        self.user, self.host_key = self.sshd.user, self.sshd.host_key
        for name in ("ada", "ben"):
            self.shells[name] = Here(self.root / name)
            self.shells[name].python()

    def made(self) -> SshHouse:
        engine = self.here.engine
        writer = Writer(engine)
        self.stack.callback(writer.close)
        inventory = Inventory(reading(engine), writer, SystemClock())
        for number, name in enumerate(self.shells):
            login = HostLogin(
                user=self.user,
                address="127.0.0.1",
                port=self.sshd.port if self.entered else number + 1,
                host_key=self.host_key,
                key_file=str(self.key),
            )
            inventory.add(name, login, self.device)
        connections = Connections(self._open)
        self.stack.callback(connections.close)
        checks = HostChecks(dev=str(self.root / "dev"), **self.checks)
        provider = SshProvider(
            inventory, connections, self._prepare, self.control_url, checks=checks
        )
        tunnels = Tunnels(lambda name: connect(None), ("127.0.0.1", 1), lambda name, url: None)  # pyright: ignore
        return SshHouse(inventory, connections, provider, tunnels, checks)

    def _open(self, login: Login) -> SshShell:
        if self.entered:
            return connect(login)
        return cast(SshShell, list(self.shells.values())[login.port - 1])

    def _prepare(self, shell: Shell, host: InventoryHost) -> Installed:
        """As bootstrap begins; it would put Longhaul's software there then."""
        interpreters.obtained(shell, host.name, interpreters.search(shell, ".longhaul"), None)
        folder = self.root / host.name
        return Installed(str(write_python(folder / "python")), str(folder / "longhaul"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with (
        ExitStack() as stack,
        loopback_host(tmp_path / "sshd") as (sshd, key),
        world(tmp_path) as here,
    ):
        yield Site(here, sshd, key, tmp_path / "hosts", stack, stack.enter_context(answering()))


@contextmanager
def answering() -> Iterator[str]:
    """A control plane that hosts reach; what it says to them does not matter."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def wrong_host_key(site: Site) -> None:
    site.entered = True
    site.host_key = make_key(site.root / "another")


def wrong_user(site: Site) -> None:
    site.entered = True
    site.user = "nobody-such"


def no_fitting_python(site: Site) -> None:
    for shell in site.shells.values():
        shell.old_python("3.10.12", 'case "$*" in *pip*) echo no index >&2; exit 1;; esac')


def no_disk(site: Site) -> None:
    site.checks = {"run_bytes": 1 << 60, "software_bytes": 1 << 60}


def port_taken(site: Site) -> None:
    listening = site.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = listening.getsockname()[1]
    site.checks = {"ports": (port, port)}


def clock_off_by_an_hour(site: Site) -> None:
    site.checks = {"now": lambda: time.time() - 3600}


def device_busy(site: Site) -> None:
    site.device = Devices(GPU, 1)
    for shell in site.shells.values():
        shell.program("nvidia-smi", *SMI)


def folder_that_is_not_shared(site: Site) -> None:
    """The other machine's disk: the same path leads to another folder there."""
    site.checks = {"storage": str(site.root / "checkpoints"), "run_bytes": 1}
    site.shells["ben"].program("cat", "exit 1")


CASES = [
    (wrong_host_key, Code.CONNECTION, "shows another host key than the one that was pinned"),
    (wrong_user, Code.CONNECTION, "does not let user nobody-such in with"),
    (no_fitting_python, Code.PYTHON, "no Python 3.11 to 3.13; it has Python 3.10.12"),
    (no_disk, Code.DISK, "GiB free, and 1073741824.0 needed"),
    (port_taken, Code.PORTS, "taken: "),
    (clock_off_by_an_hour, Code.CLOCK, "its clock is 60 min ahead of the control plane's"),
    (device_busy, Code.DEVICE_BUSY, "in use by "),
    (folder_that_is_not_shared, Code.SHARED_STORAGE, "it is another folder than on ada"),
]


@pytest.mark.parametrize(
    ("trouble", "code", "words"), CASES, ids=lambda one: getattr(one, "__name__", None)
)
def test_it_is_a_verdict_in_doctor_and_in_why(site: Site, trouble: Any, code: Code, words: str):
    trouble(site)
    house = site.made()
    [found] = [one for one in problems(house.findings("ben")) if one.code is code]
    assert words in found.what
    assert found.where.startswith("ben")
    assert found.hint
    told = why(site, house)
    assert words in told
    assert f"[{code}]" in told
    assert found.hint.split(". ")[0].split(";")[0] in told, "what to do is told too"


def why(site: Site, house: SshHouse) -> str:
    """As the command prints it of a run that asked for both hosts and was refused."""
    run = House(site.here.engine, hosts=2)
    run.lead()
    run.submit()
    request = HostRequest(2, 1)
    run.commit(MakeGroup(run.group, 1, "local", request), MoveRun(RunCause.ADMITTED))
    with pytest.raises(ProvisionRefused) as refused:
        house.provider.acquire(run.group, request)
    with run.engine.begin() as connection:
        group_writes.provider_failed(
            connection, run.group, str(refused.value), True, run.token, run.now
        )
    snap = run.snapshot()
    run.commit(*reconcile(snap).changes, snap=snap)
    with site.here.client() as client:
        detail = RunDetail.model_validate(client.get("/api/v1/runs/r1").json())
        items = client.get("/api/v1/runs/r1/incidents").json()["items"]
    assert detail.needs_person
    printed = io.StringIO()
    console = Console(width=10_000, file=printed)
    for part in why_parts(detail, newest([IncidentView.model_validate(one) for one in items])):
        console.print(part)
    return printed.getvalue()


def test_a_host_that_is_well_is_no_trouble(site: Site):
    site.checks = {"storage": str(site.root / "checkpoints"), "run_bytes": 1, "software_bytes": 1}
    house = site.made()
    found: list[Finding] = list(house.findings("ben"))
    assert [one.code for one in problems(found)] == [Code.ROUTE]
    assert {Code.CLOCK, Code.DISK, Code.SHARED_STORAGE} <= {one.code for one in found if one.well}
    assert list((site.root / "checkpoints").iterdir()) == []
