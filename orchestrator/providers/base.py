"""What every provider of hosts can do, and how it fails.

Calls are synchronous, idempotent and keyed by the host group's deterministic name: acquiring what
exists adopts it, releasing what is absent succeeds. A provider keeps nothing in memory that a
restart of the control plane would lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.records import HostRequest
from worker.protocol import Notice


class ProviderError(Exception):
    """The provider could not do what was asked."""

    retryable = True
    hint = "Longhaul tries again by itself."


class ProvisionRefused(ProviderError):
    """The provider says that this can not work as asked."""

    retryable = False
    hint = "Change the spec's hosts, then resume the run."


@dataclass(frozen=True)
class HostProbe:
    """One host as the provider sees it now. None means: could not tell."""

    index: int
    address: str
    agent_alive: bool | None
    trainer_alive: bool | None


@dataclass(frozen=True)
class GroupProbe:
    """A host group as the provider sees it now; `exists` is False when nothing of it is left.

    `taken` says that the cloud itself took the hosts away, and why; `words` are its own. `again`
    says that hosts which were never all up will not come from what was asked for so far, and why:
    the provider wants to be asked again.
    """

    exists: bool
    ready: bool
    hosts: tuple[HostProbe, ...] = ()
    taken: Notice | None = None
    words: str | None = None
    again: str | None = None

    @property
    def well(self) -> bool:
        """Everything is up, and an agent and a trainer live on each host."""
        alive = all(host.agent_alive and host.trainer_alive for host in self.hosts)
        return self.exists and self.ready and self.taken is None and alive


@dataclass(frozen=True)
class Owned:
    """A group that exists at the provider, with so many `devices` a host; None: it can not tell."""

    name: str
    hosts: int | None = None
    devices: int | None = None


class Provider(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def hold_seconds(self) -> float | None:
        """How long a pause keeps the hosts where the spec does not say; None: not at all."""
        ...

    def acquire(self, group: str, request: HostRequest) -> None:
        """Ask for the group's hosts. Returns once asked; readiness is observed.

        The section of the request is this provider's own, or None.
        """
        ...

    def probe(self, group: str) -> GroupProbe: ...

    def launch(self, group: str, host: int, secret: str) -> None:
        """Start the agent of one host, ending any earlier agent and trainer there first.

        The secret reaches the agent on its standard input, never in arguments or environment.
        """
        ...

    def release(self, group: str) -> None:
        """End every process of the group and give its hosts back."""
        ...

    def owned(self) -> Sequence[Owned]:
        """Every group that exists at the provider, whole or in part, in their names' order.

        At least all of this installation; what others own is left alone by who asks.
        """
        ...

    def announce(self, control_url: str) -> None:
        """The control plane answers at this URL now; running agents must learn of it."""
        ...
