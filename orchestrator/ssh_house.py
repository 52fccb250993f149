"""Puts the SSH provider together, where paramiko is there.

Owns what of it follows from the settings. Imports paramiko only when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Engine

from orchestrator.clock import Clock
from orchestrator.providers.bootstrap import Installed
from orchestrator.providers.inventory import CPU, BadInventory, InventoryHost, read_file
from orchestrator.providers.shell import Shell
from orchestrator.providers.software import Software
from orchestrator.settings import Settings
from orchestrator.store import inventory as stored
from orchestrator.store.writer import Writer

if TYPE_CHECKING:
    from orchestrator.inventory import SshHouse
    from orchestrator.providers.ssh_shell import SshShell

log = structlog.get_logger(__name__)


def ssh_house(
    settings: Settings, read: Engine, writer: Writer, clock: Clock, installation: str | None = None
) -> SshHouse | None:
    """None without paramiko. An inventory file that does not fit is told of and changes nothing."""
    if find_spec("paramiko") is None:
        return None
    from orchestrator.inventory import Inventory, SshHouse
    from orchestrator.providers.host_checks import HostChecks
    from orchestrator.providers.ssh import SshProvider, login_of
    from orchestrator.providers.ssh_transport import Connections, connect
    from orchestrator.providers.tunnels import Tunnels

    inventory, connections = Inventory(read, writer, clock), Connections()
    if settings.inventory is not None:
        try:
            inventory.follow_file(read_file(settings.inventory))
        except BadInventory as error:
            log.error("the inventory file is not used", words=str(error))
        except stored.NameTaken as error:
            log.error("the inventory file names a host that was added by hand", host=str(error))

    def entered(name: str) -> SshShell:
        hosts = {host.name: host for host in inventory.hosts()}
        return connect(login_of(hosts[name], hosts))

    # A tunnel that moved is told to the host's agents by the next look at it.
    tunnels = Tunnels(entered, _bound(settings), lambda name, url: None)
    checks = HostChecks(
        ports=settings.ssh_port_range,
        storage=settings.storage_root,
        python=settings.ssh_python,
        has_archive=settings.python_archive is not None,
        installation=installation,
    )
    provider = SshProvider(
        inventory,
        connections,
        _prepare(settings),
        settings.url,
        settings.public_url,
        tunnel_url=tunnels.url,
        checks=checks,
    )
    return SshHouse(inventory, connections, provider, tunnels, checks)


def _bound(settings: Settings) -> tuple[str, int]:
    """Where a tunnel leads: to what this process listens on."""
    return urlsplit(settings.url).hostname or "127.0.0.1", settings.port


def _prepare(settings: Settings) -> Callable[[Shell, InventoryHost], Installed]:
    from orchestrator.providers.host_checks import standing

    software = Software(
        settings.data_dir / "software", settings.wheelhouse, settings.python_archive
    )

    def prepare(shell: Shell, host: InventoryHost) -> Installed:
        if settings.ssh_python is not None:
            return standing(shell, settings.ssh_python)
        return software.prepare(shell, host.name, "cpu" if host.kind == CPU else "gpu")

    return prepare
