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
from orchestrator.providers.base import ProviderError, ProvisionRefused
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

FOLDER = ".longhaul"  # in the home of the user that Longhaul is on a host
log = structlog.get_logger(__name__)


def ssh_house(settings: Settings, read: Engine, writer: Writer, clock: Clock) -> SshHouse | None:
    """None without paramiko. An inventory file that does not fit is told of and changes nothing."""
    if find_spec("paramiko") is None:
        return None
    from orchestrator.inventory import Inventory, SshHouse
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
    provider = SshProvider(
        inventory,
        connections,
        _prepare(settings),
        settings.url,
        settings.public_url,
        tunnel_url=tunnels.url,
    )
    has_archive = settings.python_archive is not None
    return SshHouse(inventory, connections, provider, tunnels, has_archive)


def _bound(settings: Settings) -> tuple[str, int]:
    """Where a tunnel leads: to what this process listens on."""
    return urlsplit(settings.url).hostname or "127.0.0.1", settings.port


def _prepare(settings: Settings) -> Callable[[Shell, InventoryHost], Installed]:
    software = Software(
        settings.data_dir / "software", settings.wheelhouse, settings.python_archive
    )

    def prepare(shell: Shell, host: InventoryHost) -> Installed:
        if settings.ssh_python is not None:
            return standing(shell, settings.ssh_python)
        return software.prepare(shell, host.name, "cpu" if host.kind == CPU else "gpu")

    return prepare


def standing(shell: Shell, python: str) -> Installed:
    """Looks whether `python` has Longhaul. Raises `ProviderError`."""
    ask = "import worker.agent, pathlib; print(pathlib.Path.home())"
    seen = shell.run([python, "-c", ask])
    if seen.code is None:
        raise ProviderError("the connection was lost while its software was looked at")
    if seen.code != 0:
        words = seen.err.decode(errors="replace").strip()[-300:]
        raise ProvisionRefused(f"{python} there does not run Longhaul: {words}")
    home = seen.out.decode().strip().splitlines()[-1]
    return Installed(python, f"{home}/{FOLDER}")
