"""The facts that `on_host/facts.py` measured, as frozen data.

Owns the reading of its JSON and nothing else: what follows from it is the doctor's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict


class Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Disk(Told):
    """`free` bytes and `inodes` where `folder` is or would be; `kind` as in "nfs4"."""

    folder: str
    free: int
    inodes: int | None
    writable: bool
    kind: str | None


class Process(Told):
    """`ours` runs under an environment that Longhaul made there."""

    pid: int
    user: str | None
    name: str
    ours: bool

    def __str__(self) -> str:
        return f"{self.name or 'a process'} ({self.pid}, of {self.user or 'an unknown user'})"


class Gpu(Told):
    """As nvidia-smi tells it; memory in MiB, where it tells that."""

    index: int
    uuid: str
    name: str
    total: str
    used: str

    @property
    def used_mib(self) -> int:
        return int(self.used) if self.used.isdigit() else 0


class GpuUser(Told):
    """`by` computes on the GPU of this uuid."""

    uuid: str
    by: Process


class Gpus(Told):
    failed: str | None
    found: tuple[Gpu, ...]
    users: tuple[GpuUser, ...]


class TakenPort(Told):
    port: int
    by: Process | None
    why: str


class Ports(Told):
    low: int
    high: int
    taken: tuple[TakenPort, ...]


class Reach(Told):
    trouble: Literal["name", "refused", "timeout", "tls", "http", "other"] | None
    words: str = ""
    installation: str | None = None


class Clock(NamedTuple):
    """The host's clock as the script began and as it ended, in seconds since 1970."""

    began: float
    ended: float


class Facts(Told):
    """`gpus` is None where there is no nvidia-smi; `holders` goes by a device's file."""

    python: str
    hostname: str
    disk: Disk
    gpus: Gpus | None
    device_files: tuple[str, ...]
    holders: Mapping[str, tuple[Process, ...]]
    ports: Ports | None
    reach: Reach | None
    clock: Clock
