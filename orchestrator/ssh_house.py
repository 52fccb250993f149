"""Puts the SSH provider together, where paramiko is there.

Owns what of it follows from the settings. Imports paramiko only when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Engine

from orchestrator.clock import Clock
from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.providers.inventory import BadInventory, InventoryHost, read_file
from orchestrator.providers.shell import Shell
from orchestrator.settings import Settings
from orchestrator.store import inventory as stored
from orchestrator.store.writer import Writer

if TYPE_CHECKING:
    from orchestrator.inventory import SshHouse

FOLDER = ".longhaul"  # in the home of the user that Longhaul is on a host
log = structlog.get_logger(__name__)


def ssh_house(settings: Settings, read: Engine, writer: Writer, clock: Clock) -> SshHouse | None:
    """None without paramiko. An inventory file that does not fit is told of and changes nothing."""
    if find_spec("paramiko") is None:
        return None
    from orchestrator.inventory import Inventory, SshHouse
    from orchestrator.providers.ssh import SshProvider
    from orchestrator.providers.ssh_transport import Connections

    inventory, connections = Inventory(read, writer, clock), Connections()
    if settings.inventory is not None:
        try:
            inventory.follow_file(read_file(settings.inventory))
        except BadInventory as error:
            log.error("the inventory file is not used", words=str(error))
        except stored.NameTaken as error:
            log.error("the inventory file names a host that was added by hand", host=str(error))
    provider = SshProvider(
        inventory, connections, _prepare(settings), settings.url, settings.public_url
    )
    return SshHouse(inventory, connections, provider)


@dataclass(frozen=True)
class Standing:
    """Software that somebody else has put on a host."""

    python: str
    root: str


def _prepare(settings: Settings) -> Callable[[Shell, InventoryHost], Standing]:
    def prepare(shell: Shell, host: InventoryHost) -> Standing:
        python = settings.ssh_python
        if python is None:
            raise ProvisionRefused(
                "no interpreter with Longhaul is known for hosts; set ssh_python to its path there"
            )
        return standing(shell, python)

    return prepare


def standing(shell: Shell, python: str) -> Standing:
    """Looks whether `python` has Longhaul. Raises `ProviderError`."""
    ask = "import worker.agent, pathlib; print(pathlib.Path.home())"
    seen = shell.run([python, "-c", ask])
    if seen.code is None:
        raise ProviderError("the connection was lost while its software was looked at")
    if seen.code != 0:
        words = seen.err.decode(errors="replace").strip()[-300:]
        raise ProvisionRefused(f"{python} there does not run Longhaul: {words}")
    home = seen.out.decode().strip().splitlines()[-1]
    return Standing(python, f"{home}/{FOLDER}")
