"""Where a gang runs: how many hosts, of which provider, and what that provider alone understands.

Owns the `hosts` part of a spec. A provider that can be asked for more than a number has a section
of its own here, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator

from worker.protocol.base import Spec
from worker.protocol.tpu import SHAPES, TpuSpec

LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"
COORDINATOR_PORTS = "LONGHAUL_COORDINATOR_PORTS"  # FIRST-LAST, both in it: told to an agent
Label = Annotated[str, Field(pattern=LABEL_PATTERN)]


class SshHosts(Spec):
    """Which hosts of the inventory fit: those with all of `labels`, and with devices of `kind`."""

    labels: Mapping[Label, Label] = Field(default_factory=dict[str, str], max_length=20)
    kind: Annotated[str, Field(min_length=1, max_length=100)] | None = None

    def __hash__(self) -> int:
        return hash((frozenset(self.labels.items()), self.kind))


HostsSection = SshHosts | TpuSpec
SECTIONS: Mapping[str, type[SshHosts] | type[TpuSpec]] = MappingProxyType(
    {"ssh": SshHosts, "tpu": TpuSpec}
)


def _left_out(given: object) -> bool:
    """Older agents refuse a field that they do not know."""
    return given is None


class HostsSpec(Spec):
    """Where the gang runs: `count` hosts from `provider`, each with `devices` devices.

    `ssh` and `tpu` say more to the provider of that name. With `tpu` the type of the slice says how
    many hosts and devices there are.
    """

    provider: Literal["local", "ssh", "tpu"] = "local"
    count: Annotated[int, Field(gt=0, le=64)] = 1
    devices: Annotated[int, Field(gt=0, le=64)] = 1
    ssh: Annotated[SshHosts | None, Field(exclude_if=_left_out)] = None
    tpu: Annotated[TpuSpec | None, Field(exclude_if=_left_out)] = None

    @model_validator(mode="before")
    @classmethod
    def _as_the_slice_has(cls, given: object) -> object:
        """Numbers that nobody gave are those of the slice."""
        if not isinstance(given, dict):
            return given
        fields = cast(dict[str, object], given)
        section = fields.get("tpu")
        if isinstance(section, dict):
            kind = cast(dict[str, object], section).get("type")
        else:
            kind = section.type if isinstance(section, TpuSpec) else None
        shape = SHAPES.get(kind) if isinstance(kind, str) else None
        if shape is None:
            return fields
        return {"count": shape.hosts, "devices": shape.devices, **fields}

    @model_validator(mode="after")
    def _is_for_its_provider(self) -> Self:
        for name in SECTIONS:
            if name != self.provider and getattr(self, name) is not None:
                raise ValueError(
                    f"hosts.{name} is for provider {name}, and hosts.provider is {self.provider};"
                    f" set the one or leave the other out"
                )
        return self

    @model_validator(mode="after")
    def _is_one_slice(self) -> Self:
        if self.provider != "tpu":
            return self
        if self.tpu is None:
            raise ValueError("provider tpu needs to know the slice: set hosts.tpu.type, like v4-8")
        shape = self.tpu.shape
        for field, given, has in (
            ("count", self.count, shape.hosts),
            ("devices", self.devices, shape.devices),
        ):
            if given != has:
                words = "hosts" if field == "count" else "devices on each host"
                raise ValueError(
                    f"hosts.{field} is {given}, but hosts.tpu.type {shape.type} has {has} {words};"
                    f" set hosts.{field} to {has} or leave it out"
                )
        return self

    @property
    def section(self) -> HostsSection | None:
        """What the spec says to its provider alone."""
        return getattr(self, self.provider) if self.provider in SECTIONS else None

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read it."""
        return 2 if self.provider == "local" else 3
