"""Queued resources and TPU nodes as the cloud shows them, as plain data, without any client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from orchestrator.providers.tpu_states import NodeState, RequestState

ASKED = "longhaul-asked"  # the label that tells when a request was made, by our own clock
INSTALLATION = "longhaul-installation"
GROUP = "longhaul-group"


@dataclass(frozen=True)
class Seen:
    """A queued resource as the cloud shows it. `error` is the status that it failed with."""

    zone: str
    name: str
    state: RequestState
    created_at: datetime
    type: str
    image: str
    tier: str
    labels: Mapping[str, str]
    error: str | None = None
    words: str = ""

    @property
    def asked(self) -> int:
        """When it was asked for, in milliseconds of our own clock; 0 where nobody wrote it."""
        text = self.labels.get(ASKED, "")
        return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class VmAddress:
    internal: str
    external: str


@dataclass(frozen=True)
class SeenNode:
    """A TPU node. `addresses` are those of its VMs in their order; one may come late: empty."""

    zone: str
    name: str
    state: NodeState
    type: str
    labels: Mapping[str, str]
    addresses: tuple[VmAddress, ...] = ()
    words: str = ""
