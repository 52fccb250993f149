"""The hosts that the SSH provider may use, and which of their device slots serve which group.

Owns what a host of the inventory is, how it is written in a TOML file, and how a request finds its
places. Pure but for reading that file; where it is kept is `store.inventory`'s matter.
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from orchestrator.plain_words import in_words
from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.records import HostRequest
from worker.protocol import SshHosts
from worker.protocol.hosts import Label

CPU = "cpu"  # the kind of devices of a host that has no accelerator
HOST_NAME_PATTERN = r"^[a-z0-9][a-z0-9.-]{0,39}$"
USER_PATTERN = r"^[a-zA-Z_][a-zA-Z0-9._-]{0,31}$"
ADDRESS_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,79}$"
KEY_PATTERN = r"^[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( .*)?$"


class HostLogin(BaseModel):
    """A host as a person writes it down. `devices` are probed where they are not given.

    `jump` names another host of the inventory through which this one is reached, `private_address`
    is where the other hosts of a gang reach it. A `tunnel` leads to the control plane from a host
    that could not reach it otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: Annotated[str, Field(pattern=USER_PATTERN)]
    address: Annotated[str, Field(pattern=ADDRESS_PATTERN)]
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    host_key: Annotated[str, Field(pattern=KEY_PATTERN, max_length=4000)]
    key_file: Annotated[str, Field(pattern=r"^/[ -~]*$", max_length=400)] | None = None
    jump: Annotated[str, Field(pattern=HOST_NAME_PATTERN)] | None = None
    private_address: Annotated[str, Field(pattern=ADDRESS_PATTERN, max_length=80)] | None = None
    labels: Annotated[Mapping[Label, Label], Field(max_length=20)] = Field(
        default_factory=dict[str, str]
    )
    kind: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    devices: Annotated[int, Field(ge=0, le=64)] | None = None
    tunnel: bool = False

    @field_validator("host_key")
    @classmethod
    def _without_comment(cls, key: str) -> str:
        return " ".join(key.split()[:2])


class CordonedBy(StrEnum):
    """Only a person takes back what a person did; a probe that succeeds takes back a probe's."""

    PERSON = "person"
    PROBE = "probe"


@dataclass(frozen=True)
class Cordon:
    """No group gets a place there, and why."""

    by: CordonedBy
    why: str
    at: datetime


@dataclass(frozen=True)
class InventoryHost:
    """A host with `devices` slots of `kind`, and the slots that are `taken`.

    `from_file` is one that the inventory file names: the file alone may change it.
    """

    name: str
    login: HostLogin
    kind: str
    devices: int
    added_at: datetime
    from_file: bool = False
    cordon: Cordon | None = None
    probed_at: datetime | None = None
    taken: frozenset[int] = field(default_factory=frozenset[int])

    @classmethod
    def draft(cls, name: str, login: HostLogin) -> InventoryHost:
        """One of which nothing is known yet."""
        return cls(name, login, login.kind or "", login.devices or 0, datetime.now(UTC))

    @property
    def free(self) -> list[int]:
        return [slot for slot in range(self.devices) if slot not in self.taken]

    @property
    def ill(self) -> bool:
        """Whether a probe cordoned it, so that a probe may take that back."""
        return self.cordon is not None and self.cordon.by is CordonedBy.PROBE

    @property
    def reached_at(self) -> str:
        """Where the others of a gang reach it."""
        return self.login.private_address or self.login.address

    def fits(self, request: HostRequest) -> bool:
        """Whether it could serve the request if it were free."""
        asked = _asked(request)
        kind = asked.kind is None or asked.kind.lower() in self.kind.lower()
        labels = self.login.labels
        labelled = all(labels.get(name) == value for name, value in asked.labels.items())
        return kind and labelled and self.devices >= request.devices


@dataclass(frozen=True)
class Place:
    """Host `index` of a group lies on `host`, with these device slots.

    `python` and `folder` are there once the host was prepared. A place that was `left_at` some time
    is given back as far as its group goes; its host did not answer, so something may live there
    still, and its slots are not free.
    """

    group: str
    index: int
    host: str
    slots: tuple[int, ...]
    python: str | None = None
    folder: str | None = None
    left_at: datetime | None = None

    @property
    def prepared(self) -> bool:
        return self.python is not None


class NoHosts(ProvisionRefused):
    """The inventory has not so many hosts of the kind, whoever holds them now."""

    hint = "See what there is with longhaul hosts list; add hosts, or ask for fewer."


class HostsTaken(ProviderError):
    """The inventory has such hosts, and they are held by others or do not answer."""


def choose(
    hosts: Sequence[InventoryHost], request: HostRequest, there: Mapping[int, str]
) -> dict[int, tuple[InventoryHost, tuple[int, ...]]]:
    """A host and its slots for each index that is not `there` yet, each on a machine of its own.

    The fullest host that has room goes first, so that whole hosts stay free. Raises `NoHosts` where
    the inventory could never do, `HostsTaken` where it can not now.
    """
    missing = [index for index in range(request.hosts) if index not in there]
    if not missing:
        return {}
    fitting = [host for host in hosts if host.fits(request)]
    if len(fitting) < request.hosts:
        raise NoHosts(_too_few(request, fitting, hosts))
    held = set(there.values())
    usable = [
        host
        for host in fitting
        if host.name not in held and host.cordon is None and len(host.free) >= request.devices
    ]
    usable.sort(key=lambda host: (len(host.free), host.name))
    if len(usable) < len(missing):
        raise HostsTaken(_none_free(request, fitting, held, len(usable)))
    pairs = zip(missing, usable, strict=False)
    return {index: (host, tuple(host.free[: request.devices])) for index, host in pairs}


def _asked(request: HostRequest) -> SshHosts:
    return request.section if isinstance(request.section, SshHosts) else SshHosts()


def _wanted(request: HostRequest) -> str:
    asked = _asked(request)
    labels = ", ".join(f"{name}={value}" for name, value in sorted(asked.labels.items()))
    words = [f"{request.devices} device{'s' if request.devices > 1 else ''}"]
    words += [f"of kind {asked.kind}"] if asked.kind else []
    words += [f"with {labels}"] if labels else []
    return " ".join(words)


def _too_few(
    request: HostRequest, fitting: Sequence[InventoryHost], hosts: Sequence[InventoryHost]
) -> str:
    if not hosts:
        return "the inventory has no hosts; add some with longhaul hosts add"
    names = ", ".join(host.name for host in fitting) or "none"
    return (
        f"{request.hosts} hosts with {_wanted(request)} are asked for, and of the inventory's"
        f" {len(hosts)} only {len(fitting)} fit: {names}"
    )


def _none_free(
    request: HostRequest, fitting: Sequence[InventoryHost], held: set[str], usable: int
) -> str:
    reasons = [
        f"{host.name} is cordoned ({host.cordon.why})"
        if host.cordon is not None
        else f"{host.name} has {len(host.free)} of {host.devices} devices free"
        for host in fitting
        if host.name not in held and (host.cordon or len(host.free) < request.devices)
    ]
    found = usable + len(held)
    return (
        f"{request.hosts} hosts with {_wanted(request)} are asked for, and {found} are to be had"
        f" now: {'; '.join(reasons)}"
    )


def fingerprint(text: str) -> str:
    """As ssh prints it."""
    digest = hashlib.sha256(base64.b64decode(text.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


# ---- the file ----------------------------------------------------------------------------------


class BadInventory(Exception):
    """The inventory file can not be used; the message names the place and what to do."""


def read_file(path: Path) -> dict[str, HostLogin]:
    """The hosts of the inventory file, by name: a table `[hosts.NAME]` for each."""
    try:
        with path.open("rb") as file:
            given = tomllib.load(file)
    except OSError as error:
        raise BadInventory(f"The inventory {path} can not be read: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInventory(f"The inventory {path} is not valid TOML: {error}") from error
    try:
        return _File.model_validate(given).hosts
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        words = " ".join(filter(None, in_words(first)))
        raise BadInventory(f"The inventory {path} does not fit at {place}: {words}") from error


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: dict[Annotated[str, Field(pattern=HOST_NAME_PATTERN)], HostLogin]
