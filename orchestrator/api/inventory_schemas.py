"""What the calls about the inventory take and answer. Pure data, for the client too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AwareDatetime, Field

from orchestrator.api.requests import Asking, Reason
from orchestrator.api.schemas import View
from orchestrator.providers.findings import Code, Level
from orchestrator.providers.inventory import (
    ADDRESS_PATTERN,
    HOST_NAME_PATTERN,
    KEY_PATTERN,
    USER_PATTERN,
    CordonedBy,
)
from worker.protocol.hosts import Label

Name = Annotated[str, Field(pattern=HOST_NAME_PATTERN)]


class HostAdded(Asking):
    """A host to add. Without `host_key`, `trust_on_first_use` pins the key that it shows now."""

    name: Name
    user: Annotated[str, Field(pattern=USER_PATTERN)]
    address: Annotated[str, Field(pattern=ADDRESS_PATTERN)]
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    host_key: Annotated[str, Field(pattern=KEY_PATTERN, max_length=4000)] | None = None
    trust_on_first_use: bool = False
    key_file: Annotated[str, Field(pattern=r"^/[ -~]*$", max_length=400)] | None = None
    jump: Name | None = None
    private_address: Annotated[str, Field(pattern=ADDRESS_PATTERN, max_length=80)] | None = None
    labels: Annotated[dict[Label, Label], Field(max_length=20)] = Field(
        default_factory=dict[str, str]
    )
    kind: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    devices: Annotated[int, Field(ge=0, le=64)] | None = None
    tunnel: bool = False


class CordonRequest(Asking):
    reason: Annotated[Reason, Field(min_length=1)]


class CordonView(View):
    """Since when and why no group gets a place there. A probe's cordon goes by itself."""

    by: CordonedBy
    reason: str
    since: AwareDatetime


class HostHolder(View):
    """A group that holds devices of the host. `left`: it does not want them any more, and nobody
    has seen yet that nothing lives there."""

    group: str
    index: int
    devices: tuple[int, ...]
    left: bool


class InventoryHostView(View):
    """A host of the inventory, and who holds it."""

    name: str
    user: str
    address: str
    port: int
    fingerprint: str
    jump: str | None
    tunnel: bool
    private_address: str | None
    labels: Mapping[str, str]
    kind: str
    devices: int
    free: int
    from_file: bool
    cordon: CordonView | None
    added_at: AwareDatetime
    probed_at: AwareDatetime | None
    holders: tuple[HostHolder, ...]


class InventoryView(View):
    items: tuple[InventoryHostView, ...]


class FindingView(View):
    """One thing that was looked at on a host; `hint` says what to do where it is not well."""

    code: Code
    level: Level
    where: str
    what: str
    hint: str | None


class FindingsView(View):
    items: tuple[FindingView, ...]


BODIES = (HostAdded, CordonRequest)
