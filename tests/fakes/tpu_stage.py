"""The provider of Cloud TPU on a fake cloud, with agents of this machine on its VMs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from orchestrator.providers.base import Provider
from orchestrator.providers.bootstrap import Installed
from orchestrator.providers.local import LocalProvider
from orchestrator.providers.ssh_transport import Connections
from orchestrator.providers.tpu import Launcher, TpuProvider, TpuTerms
from orchestrator.providers.tpu_cloud import TpuCloud, open_client
from orchestrator.providers.tpu_seen import VmAddress
from orchestrator.providers.tpu_ssh import SshLauncher
from orchestrator.records import HostRequest
from tests.fakes.cloud_tpu import CloudServer, FakeCloud
from tests.fakes.cloud_tpu.cloud import NoVms, Vms
from tests.fakes.ssh_hosts import LoopbackHost, loopback_host, write_python
from tests.fakes.stage import FAKE_AGENT, Stage
from worker.protocol import TpuSpec

PROJECT, ZONE = "p1", "us-central2-b"
INSTALLATION = "inst0001"


def slice_of(kind: str, *zones: str, tier: str = "spot") -> HostRequest:
    spec = TpuSpec.model_validate({"type": kind, "tier": tier, "zones": zones or None})
    return HostRequest(spec.shape.hosts, spec.shape.devices, spec)


class LocalLauncher:
    """Each host of a group is a folder of this machine, whatever its VM's address is."""

    def __init__(self, root: Path, control_url: str) -> None:
        self._local = LocalProvider(root, control_url, FAKE_AGENT)

    def launch(self, vm: VmAddress, group: str, host: int, secret: str) -> None:
        self._local.acquire(group, HostRequest(4, 1))
        self._local.launch(group, host, secret)

    def alive(self, vm: VmAddress, group: str, host: int) -> tuple[bool | None, bool | None]:
        probe = self._local.probe(group)
        if not probe.hosts:
            return False, False
        return probe.hosts[host].agent_alive, probe.hosts[host].trainer_alive

    def end(self, vm: VmAddress, group: str, host: int) -> None:
        if host == 0:
            self._local.release(group)

    def announce(self, vm: VmAddress, group: str, host: int, control_url: str) -> None:
        self._local.announce(control_url)


class TpuStage(Stage):
    one = slice_of("v6e-1")
    several = slice_of("v4-32")

    def __init__(self, root: Path) -> None:
        self.cloud = FakeCloud(PROJECT, [ZONE], vms=self.vms())
        self.server = CloudServer(self.cloud)
        self.server.__enter__()
        super().__init__(root)
        (self.groups / "lh-test-1" / "0").mkdir(parents=True)

    def vms(self) -> Vms:
        return NoVms()

    @property
    def groups(self) -> Path:
        return self.root / "vms"

    def made_provider(self) -> Provider:
        cloud = TpuCloud(open_client(self.server.endpoint), PROJECT)
        terms = TpuTerms((ZONE,), {"enable-guest-attributes": "TRUE"}, poll_seconds=0.0)
        return TpuProvider(cloud, INSTALLATION, self.launcher(cloud), terms)

    def launcher(self, cloud: TpuCloud) -> Launcher:
        return LocalLauncher(self.groups, self.plane.url)

    def close(self) -> None:
        try:
            super().close()
            assert self.cloud.left == []
        finally:
            self.server.stop()


class OnSshd:
    """Every VM is this machine, by its sshd on loopback."""

    def __init__(self, host: LoopbackHost) -> None:
        self._host = host

    def start(self, node: str, hosts: int) -> list[tuple[str, str]]:
        return [(self._host.address, self._host.address)] * hosts

    def stop(self, node: str) -> None:
        """It stays."""

    def host_keys(self, node: str, number: int) -> dict[str, str]:
        kind, key = self._host.host_key.split()[:2]
        return {kind: key}


class TpuSshStage(TpuStage):
    """Agents are started by SSH, as on real VMs, with the host key that the cloud tells."""

    def __init__(self, root: Path) -> None:
        self.stack = ExitStack()
        self.host, self.key = self.stack.enter_context(loopback_host(root))
        self.there = Installed(str(write_python(root / "python")), str(root / "vms-software"))
        self.lock = root / "libtpu_lockfile"
        self.lock.touch()
        super().__init__(root)

    def vms(self) -> Vms:
        return OnSshd(self.host)

    @property
    def groups(self) -> Path:
        return Path(self.there.root) / "hosts"

    def launcher(self, cloud: TpuCloud) -> Launcher:
        connections = Connections()
        self.stack.callback(connections.close)
        return SshLauncher(
            connections,
            self.host.user,
            str(self.key),
            lambda vm, group, host: cloud.host_key(vm.zone, group, host),
            lambda shell, name: self.there,
            lambda: self.plane.url,
            ("-m", "tests.fakes.agent"),
            self.host.port,
            self.there.root,
            (str(self.lock), str(self.root / "device")),
        )

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.stack.close()
