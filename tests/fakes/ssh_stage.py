"""Stages of the SSH provider: four hosts of an inventory that are one sshd."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from orchestrator.clock import SystemClock
from orchestrator.inventory import Inventory
from orchestrator.providers.base import Provider
from orchestrator.providers.bootstrap import Installed
from orchestrator.providers.host_devices import Devices
from orchestrator.providers.inventory import HostLogin, InventoryHost
from orchestrator.providers.shell import Shell
from orchestrator.providers.ssh import SshProvider
from orchestrator.providers.ssh_transport import Connections
from orchestrator.store import tables
from orchestrator.store.engine import open_engine, reading
from orchestrator.store.writer import Writer
from tests.fakes.ssh_hosts import loopback_host, write_python
from tests.fakes.stage import Stage

HOSTS, DEVICES = 4, 4
AGENT = ("-m", "tests.fakes.agent")


class InventoryStage(Stage):
    """`there` is what bootstrap would have made on the host that `login` enters."""

    def __init__(self, root: Path, login: HostLogin, there: Installed, stack: ExitStack) -> None:
        self.there, self.stack = there, stack
        engine = open_engine(f"sqlite:///{root / 'longhaul.db'}")
        self.stack.callback(engine.dispose)
        tables.metadata.create_all(engine)
        writer = Writer(engine)
        self.stack.callback(writer.close)
        self.inventory = Inventory(reading(engine), writer, SystemClock())
        for number in range(HOSTS):
            self.inventory.add(f"h{number}", login, Devices("cpu", DEVICES))
        super().__init__(root)

    @property
    def groups(self) -> Path:
        return Path(self.there.root) / "hosts"

    def prepare(self, shell: Shell, host: InventoryHost) -> Installed:
        return self.there

    def made_provider(self) -> Provider:
        connections = Connections()
        self.stack.callback(connections.close)
        return SshProvider(self.inventory, connections, self.prepare, self.plane.url, None, AGENT)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.stack.close()


class SshStage(InventoryStage):
    """The sshd is on this machine."""

    def __init__(self, root: Path) -> None:
        stack = ExitStack()
        host, key = stack.enter_context(loopback_host(root))
        login = HostLogin(
            user=host.user,
            address=host.address,
            port=host.port,
            host_key=host.host_key,
            key_file=str(key),
        )
        there = Installed(str(write_python(root / "python")), str(root / "there"))
        super().__init__(root, login, there, stack)
