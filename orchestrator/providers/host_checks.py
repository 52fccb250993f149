"""What is looked at on the hosts of the inventory: all of it by doctor, and before a start whatever
must not wait until a trainer fails.

Owns which findings stop a start. How a host is judged is `host_doctor`'s matter, whether hosts
share a folder `shared_folder`'s. Must not import the store, the API or another provider.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.providers.bootstrap import Installed
from orchestrator.providers.findings import Code, Finding, problem, problems
from orchestrator.providers.host_doctor import GIB, Look, examined
from orchestrator.providers.inventory import CPU, InventoryHost
from orchestrator.providers.shared_folder import BUCKET, shared
from orchestrator.providers.shell import Shell
from orchestrator.providers.ssh_transport import BadHostKey, HostKeyDiffers, LoginRefused
from worker.protocol.hosts import COORDINATOR_PORTS

FOLDER = ".longhaul"  # in the home of the user that Longhaul is on a host
# Bootstrap says itself which Python it missed and what it tried, and the way to the control plane
# is asked for by the agents' own address.
STOPS_A_START = frozenset(
    {Code.CONNECTION, Code.DISK, Code.CLOCK, Code.DEVICES, Code.DEVICE_BUSY, Code.PORTS}
)
NOT_LET_IN = (LoginRefused, HostKeyDiffers, BadHostKey)


@dataclass(frozen=True)
class HostChecks:
    """What the settings say of every host.

    `ports` are the coordinators', both ends in it; `storage` is where checkpoints go. `python` has
    Longhaul on all hosts already. `installation` is the id that the control plane must tell.
    `software_bytes` are free where Longhaul has still to put its software, `run_bytes` before each
    start.
    """

    ports: tuple[int, int] | None = None
    storage: str | None = None
    python: str | None = None
    has_archive: bool = False
    installation: str | None = None
    software_bytes: int = 5 * GIB
    run_bytes: int = GIB
    dev: str = "/dev"
    now: Callable[[], float] = time.time

    @property
    def environment(self) -> dict[str, str]:
        """What an agent is told of it."""
        return {} if self.ports is None else {COORDINATOR_PORTS: "{}-{}".format(*self.ports)}

    def doctor(self, shell: Shell, host: InventoryHost, url: str) -> tuple[Finding, ...]:
        """Everything about this host alone; changes nothing there."""
        look = Look(
            host=host.name,
            root=FOLDER,
            free_bytes=self.run_bytes if self.python is not None else self.software_bytes,
            devices=None if host.kind == CPU else host.devices,
            ports=self.ports,
            url=None if host.login.tunnel else url,
            tunnel=host.login.tunnel,
            installation=self.installation,
            has_archive=self.has_archive,
            python=self.python,
            dev=self.dev,
        )
        return examined(shell, look, self.now)

    def before_a_start(
        self, shell: Shell, host: InventoryHost, slots: tuple[int, ...]
    ) -> tuple[Finding, ...]:
        """What forbids a trainer there that is to have these device slots."""
        look = Look(
            host=host.name,
            root=FOLDER,
            free_bytes=self.run_bytes,
            devices=None if host.kind == CPU else host.devices,
            slots=() if host.kind == CPU else slots,
            ports=self.ports,
            python=self.python,
            dev=self.dev,
        )
        found = problems(examined(shell, look, self.now))
        stops = STOPS_A_START if self.python is None else STOPS_A_START | {Code.PYTHON}
        return tuple(one for one in found if one.code in stops)

    def not_shared(self, shells: Mapping[str, Shell]) -> tuple[Finding, ...]:
        """Which hosts of a gang have another checkpoint folder than its first one."""
        return problems(self.storage_of(shells)) if len(shells) > 1 else ()

    def storage_of(self, shells: Mapping[str, Shell]) -> tuple[Finding, ...]:
        """What is found of the checkpoint folder, the first host's taken for the right one."""
        if self.storage is None or self.storage.startswith(BUCKET):
            return ()
        return shared(shells, self.storage)


def entered(host: str, error: ProviderError) -> Finding:
    """Why a host could not be entered, as doctor says it."""
    return problem(Code.CONNECTION, host, str(error), error.hint)


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
