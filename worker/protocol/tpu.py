"""Slices of Cloud TPU: the types that can be asked for, what they consist of, and their section.

A type's name counts TensorCores up to v4 and for v5p, chips for v5e and v6e. A host is one VM: the
larger slices of v5e and v6e have VMs with 4 chips, while 8 chips in one slice are a single VM.
Devices are as JAX sees them: two a chip on v2 and v3, one a chip since. The newer ones (TPU7x) are
not in the API that Longhaul speaks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, field_validator

from worker.protocol.base import Spec

MAX_HOSTS = 64  # of one run
ZONE_PATTERN = r"^[a-z]+(-[a-z0-9]+)+-[a-z]$"
_UNIT_OF_POD = 4  # chips of one VM in a slice of several


@dataclass(frozen=True)
class Generation:
    """`name` begins the types' names; `units_a_chip` is what their number counts.

    `alone` are the numbers of chips that one VM can have as a whole slice, `pods` those of slices
    of several VMs. `runtime` is the image that Google names for it.
    """

    name: str
    units_a_chip: int
    devices_a_chip: int
    runtime: str
    alone: tuple[int, ...]
    pods: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """One type of slice: so many VMs, each with so many chips, which JAX sees as `devices`."""

    type: str
    generation: str
    hosts: int
    chips: int
    devices: int
    runtime: str


_DOUBLING = (8, 16, 32, 64, 128, 256)
GENERATIONS = (
    Generation("v2", 2, 2, "tpu-ubuntu2204-base", (4,), (16, 32, 64, 128, 256)),
    Generation("v3", 2, 2, "tpu-ubuntu2204-base", (4,), (16, 32, 64, 128, 256)),
    Generation("v4", 2, 1, "tpu-ubuntu2204-base", (4,), _DOUBLING),
    Generation("v5litepod", 1, 1, "v2-alpha-tpuv5-lite", (1, 4, 8), (16, 32, 64, 128, 256)),
    Generation("v5p", 2, 1, "v2-alpha-tpuv5", (4,), (*_DOUBLING, 192)),
    Generation("v6e", 1, 1, "v2-alpha-tpuv6e", (1, 4, 8), (16, 32, 64, 128, 256)),
)


def _shapes() -> Mapping[str, Shape]:
    found: dict[str, Shape] = {}
    for one in GENERATIONS:
        for chips in (*one.alone, *one.pods):
            name = f"{one.name}-{chips * one.units_a_chip}"
            hosts = 1 if chips in one.alone else chips // _UNIT_OF_POD
            each = chips // hosts
            found[name] = Shape(name, one.name, hosts, each, each * one.devices_a_chip, one.runtime)
    return MappingProxyType(found)


SHAPES = _shapes()


def _unset(given: object) -> bool:
    """Older agents refuse a field that they do not know."""
    return given is None


class TpuSpec(Spec):
    """A slice of Cloud TPU. The number of hosts and of devices on each follow from its `type`.

    `tier` is what it costs and how long it stays: `spot` can be taken away at any time, `reserved`
    comes from a reservation (its name in `reservation` where there are several). `zones` are tried
    in their order; without them, all that the service may use. `runtime` is the VMs' image, by
    default the one that Google names for the generation. `os_login` says who lets Longhaul's key
    in: the project's users (OS Login), or the VM's own list of keys. Without `external_ips` the
    service must reach the VMs' private addresses, and they no package index.
    """

    type: str
    tier: Literal["spot", "reserved", "on-demand"] = "on-demand"
    zones: Annotated[tuple[str, ...] | None, Field(min_length=1, exclude_if=_unset)] = None
    runtime: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")] | None, Field(exclude_if=_unset)
    ] = None
    reservation: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,200}$")] | None, Field(exclude_if=_unset)
    ] = None
    network: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9._/:-]{1,200}$")] | None, Field(exclude_if=_unset)
    ] = None
    subnetwork: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9._/:-]{1,200}$")] | None, Field(exclude_if=_unset)
    ] = None
    service_account: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,200}$")] | None, Field(exclude_if=_unset)
    ] = None
    os_login: bool = False
    external_ips: bool = True

    @field_validator("type")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in SHAPES:
            return name
        raise ValueError(_no_such_type(name))

    @field_validator("zones")
    @classmethod
    def _zones(cls, zones: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for zone in zones or ():
            if not re.fullmatch(ZONE_PATTERN, zone):
                raise ValueError(f"{zone!r} is no zone like us-central2-b")
        if zones is not None and len(set(zones)) != len(zones):
            raise ValueError("a zone is named twice")
        return zones

    @property
    def shape(self) -> Shape:
        return SHAPES[self.type]

    @property
    def image(self) -> str:
        """The runtime version that the VMs boot."""
        return self.runtime or self.shape.runtime


def _no_such_type(name: str) -> str:
    family = next((one for one in GENERATIONS if name.startswith(f"{one.name}-")), None)
    if family is None:
        names = ", ".join(one.name for one in GENERATIONS)
        return f"there is no TPU type {name!r}; a type is a generation and a size ({names})"
    sizes = ", ".join(shape.type for shape in SHAPES.values() if shape.generation == family.name)
    return f"there is no TPU type {name!r} of at most {MAX_HOSTS} hosts; there are {sizes}"
