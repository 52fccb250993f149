"""Starts agents on TPU VMs by SSH. Implements `Launcher`.

Owns the order of things on a VM: what runs there ends, then what it left of the TPU goes, then the
agent starts. The VM's host key is the one that the VM told the cloud; nobody is trusted on sight.
Keeps only what the VM would tell again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from orchestrator.providers.base import ProviderError
from orchestrator.providers.inventory import Place
from orchestrator.providers.shell import Shell
from orchestrator.providers.ssh_control import HostControl
from orchestrator.providers.ssh_shell import HostUnreachable, SshShell
from orchestrator.providers.ssh_transport import Connections, Login
from orchestrator.providers.tpu import DeviceBusy, Launcher
from orchestrator.providers.tpu_seen import VmAddress

LOOK_SECONDS = 15.0
END_SECONDS = 40.0
FREE_SECONDS = 20.0
FOLDER = ".longhaul"
AGENT = ("-m", "worker.agent")
SYSTEM_PYTHON = "python3"  # whatever the image has; the script that looks needs no more
DEVICE = Path(__file__).with_name("on_host") / "tpu_device.py"
HostKey = Callable[[VmAddress, str, int], str | None]


class Installed(Protocol):
    @property
    def python(self) -> str: ...

    @property
    def root(self) -> str: ...


class SshLauncher:
    """`host_key` answers a VM's public key by its address, node and number, None while the VM has
    not told it. `prepare` puts Longhaul's software on a VM, or finds it there. `url` is where VMs
    find the control plane. `folder` is Longhaul's on a VM, below the user's home where it is not
    absolute. `device_arguments` name another lock file and other devices than the TPU's."""

    def __init__(
        self,
        connections: Connections,
        user: str,
        key_file: str | None,
        host_key: HostKey,
        prepare: Callable[[Shell, str], Installed],
        url: Callable[[], str],
        agent: Sequence[str] = AGENT,
        port: int = 22,
        folder: str = FOLDER,
        device_arguments: Sequence[str] = (),
    ) -> None:
        self._connections = connections
        self._user = user
        self._key_file = key_file
        self._host_key = host_key
        self._prepare = prepare
        self._url = url
        self._agent = tuple(agent)
        self._port = port
        self._folder = folder
        self._device_arguments = tuple(device_arguments)
        self._control = HostControl()
        self._homes: dict[str, str] = {}
        self._keys: dict[tuple[VmAddress, str, int], str] = {}

    def launch(self, vm: VmAddress, group: str, host: int, secret: str) -> None:
        shell = self._shell(vm, group, host, at_once=True)
        installed = self._prepare(shell, f"{group}/{host}")
        folder = f"{installed.root.rstrip('/')}/hosts/{group}/{host}"
        place = Place(group, host, vm.reached_at, (), installed.python, folder)
        self._control.ask(shell, group, place, "make", LOOK_SECONDS, url=self._url())
        self._control.ask(shell, group, place, "stop", END_SECONDS)
        self._free_device(shell, installed.python)
        handed = {"group": group, "host": host, "secret": secret, "address": vm.internal}
        self._control.ask(
            shell,
            group,
            place,
            "launch",
            END_SECONDS,
            url=self._url(),
            argv=[installed.python, *self._agent],
            env={},
            handed=json.dumps(handed),
        )

    def _free_device(self, shell: SshShell, python: str) -> None:
        """Only after the trainer before is dead; a device that stays busy makes the VM useless."""
        argv = (python, "-S", "-E", "-", f"{FREE_SECONDS:g}", *self._device_arguments)
        done = shell.run(argv, DEVICE.read_bytes(), FREE_SECONDS + LOOK_SECONDS)
        if done.code is None:
            raise HostUnreachable(f"the connection to {shell.where} was lost")
        if done.code != 0:
            words = done.err.decode(errors="replace").strip()[-300:]
            raise ProviderError(f"the TPU of {shell.where} could not be looked at: {words}")
        busy = done.out.decode(errors="replace").strip()
        if busy:
            raise DeviceBusy(f"the TPU of {shell.where} does not get free: {busy}")

    def alive(self, vm: VmAddress, group: str, host: int) -> tuple[bool | None, bool | None]:
        shell = self._shell(vm, group, host)
        place = self._place(shell, vm, group, host)
        seen = self._control.ask(shell, group, place, "look", LOOK_SECONDS, url=self._url())
        return seen["agent"], seen["trainer"]

    def end(self, vm: VmAddress, group: str, host: int) -> None:
        shell = self._shell(vm, group, host)
        place = self._place(shell, vm, group, host)
        self._control.ask(shell, group, place, "release", END_SECONDS)

    def announce(self, vm: VmAddress, group: str, host: int, control_url: str) -> None:
        """The next look would tell it too."""
        shell = self._shell(vm, group, host)
        place = self._place(shell, vm, group, host)
        self._control.ask(shell, group, place, "look", LOOK_SECONDS, url=control_url)

    def _place(self, shell: SshShell, vm: VmAddress, group: str, host: int) -> Place:
        absolute = self._folder.startswith("/")
        root = self._folder if absolute else f"{self._home(shell)}/{self._folder}"
        folder = f"{root}/hosts/{group}/{host}"
        return Place(group, host, vm.reached_at, (), SYSTEM_PYTHON, folder)

    def _home(self, shell: SshShell) -> str:
        found = self._homes.get(shell.where)
        if found is None:
            done = shell.run(["sh", "-c", 'printf %s "$HOME"'], seconds=LOOK_SECONDS)
            found = done.out.decode(errors="replace")
            if done.code != 0 or not found.startswith("/"):
                raise ProviderError(f"{shell.where} does not tell its user's home folder")
            self._homes[shell.where] = found
        return found

    def _shell(self, vm: VmAddress, group: str, host: int, *, at_once: bool = False) -> SshShell:
        place = (vm, group, host)
        key = self._keys.get(place) or self._host_key(*place)
        if key is None:
            raise HostUnreachable(f"VM {host} of {group} has not told the cloud its host key yet")
        self._keys[place] = key
        login = Login(self._user, vm.reached_at, key, self._port, self._key_file)
        return self._connections.shell(login, at_once=at_once)


def _is_a_launcher(launcher: SshLauncher) -> Launcher:  # pyright: ignore[reportUnusedFunction]
    return launcher
