"""Puts the provider of Cloud TPU together, where the settings name a project.

Owns what of it follows from the settings. Imports Google's client and paramiko only when it is
called, so that a service without Cloud TPU needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.instance import CannotStart
from orchestrator.providers.base import Provider, ProviderError
from orchestrator.providers.software import Software
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.providers.ssh_transport import Connections

VALID_FACTOR = 2  # the cloud keeps a request for longer than anybody here waits for it


@dataclass(frozen=True)
class TpuHouse:
    provider: Provider
    connections: Connections

    def close(self) -> None:
        self.connections.close()


def tpu_house(settings: Settings, installation: str) -> TpuHouse | None:
    """None where no project is set. Raises `CannotStart` where it can not be used."""
    if settings.tpu_project is None:
        return None
    _needed("google.cloud.tpu_v2", "gcp")
    _needed("paramiko", "ssh")
    from orchestrator.providers.ssh_transport import Connections
    from orchestrator.providers.tpu import TpuProvider, TpuTerms
    from orchestrator.providers.tpu_cloud import TpuCloud, open_client
    from orchestrator.providers.tpu_places import Terms
    from orchestrator.providers.tpu_ssh import SshLauncher

    try:
        client = open_client(settings.tpu_endpoint)
    except ProviderError as error:
        raise CannotStart(str(error)) from error
    cloud, connections = TpuCloud(client, settings.tpu_project), Connections()
    software = Software(
        settings.data_dir / "software", settings.wheelhouse, settings.python_archive
    )
    launcher = SshLauncher(
        connections,
        settings.tpu_ssh_user,
        str(_key_file(settings)),
        lambda vm, group, host: cloud.host_key(vm.zone, group, host),
        lambda shell, name: software.prepare(shell, name, "tpu"),
        lambda: settings.public_url or settings.url,
    )
    terms = TpuTerms(
        settings.tpu_zones,
        _metadata(settings),
        {"ssh-keys": f"{settings.tpu_ssh_user}:{_public_key(settings)}"},
        Terms(zone_wait=timedelta(seconds=settings.tpu_zone_seconds)),
        valid_seconds=int(settings.provision_seconds * VALID_FACTOR),
    )
    return TpuHouse(TpuProvider(cloud, installation, launcher, terms), connections)


def _needed(module: str, extra: str) -> None:
    try:
        there = find_spec(module) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        raise CannotStart(
            f"tpu_project is set, and {module} is not installed; install longhaul[{extra}]"
        )


def _metadata(settings: Settings) -> dict[str, str]:
    """Guest attributes let a VM tell its SSH host key to the cloud, and so to us."""
    made = {"enable-guest-attributes": "TRUE"}
    if settings.tpu_startup_script is not None:
        made["startup-script"] = _read(settings.tpu_startup_script, "tpu_startup_script")
    return made


def _key_file(settings: Settings) -> Path:
    assert settings.tpu_ssh_key is not None  # the settings are held to it
    return settings.tpu_ssh_key


def _public_key(settings: Settings) -> str:
    private = _key_file(settings)
    return _read(private.with_name(private.name + ".pub"), "tpu_ssh_key, with .pub").strip()


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"{path} ({setting}) can not be read: {error}") from error
