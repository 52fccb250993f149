"""The provider of Cloud TPU on a fake cloud, with agents of this machine on its VMs."""

from __future__ import annotations

from pathlib import Path

from orchestrator.providers.base import Provider
from orchestrator.providers.local import LocalProvider
from orchestrator.providers.tpu import TpuProvider, TpuTerms
from orchestrator.providers.tpu_cloud import TpuCloud, open_client
from orchestrator.providers.tpu_seen import VmAddress
from orchestrator.records import HostRequest
from tests.fakes.cloud_tpu import CloudServer, FakeCloud
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
        self.cloud = FakeCloud(PROJECT, [ZONE])
        self.server = CloudServer(self.cloud)
        self.server.__enter__()
        super().__init__(root)
        (self.groups / "lh-test-1" / "0").mkdir(parents=True)

    @property
    def groups(self) -> Path:
        return self.root / "vms"

    def made_provider(self) -> Provider:
        cloud = TpuCloud(open_client(self.server.endpoint), PROJECT)
        launcher = LocalLauncher(self.groups, self.plane.url)
        terms = TpuTerms((ZONE,), {}, poll_seconds=0.0)
        return TpuProvider(cloud, INSTALLATION, launcher, terms)

    def close(self) -> None:
        try:
            super().close()
            assert self.cloud.left == []
        finally:
            self.server.stop()
