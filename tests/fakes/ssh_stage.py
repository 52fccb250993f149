"""The stage of the SSH provider: four hosts of an inventory that are one sshd on this machine."""

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


class SshStage(Stage):
    def __init__(self, root: Path) -> None:
        self.stack = ExitStack()
        self.host, self.key = self.stack.enter_context(loopback_host(root))
        self.there = Installed(str(write_python(root / "python")), str(root / "there"))
        engine = open_engine(f"sqlite:///{root / 'longhaul.db'}")
        self.stack.callback(engine.dispose)
        tables.metadata.create_all(engine)
        writer = Writer(engine)
        self.stack.callback(writer.close)
        self.inventory = Inventory(reading(engine), writer, SystemClock())
        for number in range(HOSTS):
            self.inventory.add(f"h{number}", self.login(), Devices("cpu", DEVICES))
        super().__init__(root)

    def login(self) -> HostLogin:
        return HostLogin(
            user=self.host.user,
            address=self.host.address,
            port=self.host.port,
            host_key=self.host.host_key,
            key_file=str(self.key),
        )

    @property
    def groups(self) -> Path:
        return Path(self.there.root) / "hosts"

    def prepare(self, shell: Shell, host: InventoryHost) -> Installed:
        return self.there

    def made_provider(self) -> Provider:
        connections = Connections()
        self.stack.callback(connections.close)
        agent = ("-m", "tests.fakes.agent")
        return SshProvider(self.inventory, connections, self.prepare, self.plane.url, None, agent)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.stack.close()
