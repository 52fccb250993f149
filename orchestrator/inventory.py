"""The inventory of SSH hosts, for the provider's threads and for requests; and what it takes to
add a host to it.

Each change is a transaction of its own, committed when the call returns. Must not import the API.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection, Engine

from orchestrator.clock import Clock
from orchestrator.providers.base import ProviderError
from orchestrator.providers.findings import Finding
from orchestrator.providers.host_checks import HostChecks, entered
from orchestrator.providers.host_devices import Devices, probed
from orchestrator.providers.inventory import CordonedBy, HostLogin, InventoryHost, Place
from orchestrator.providers.shell import Shell
from orchestrator.providers.ssh import SshProvider, login_of
from orchestrator.providers.ssh_transport import Connections, connect, shown_key
from orchestrator.providers.tunnels import Tunnels
from orchestrator.records import HostRequest
from orchestrator.store import inventory as stored
from orchestrator.store.writer import Writer

LOOK_AGAIN = timedelta(seconds=30)
T = TypeVar("T")


class Inventory:
    """Not for the event loop: every call waits for the database."""

    def __init__(self, read: Engine, writer: Writer, clock: Clock) -> None:
        self._engine = read
        self._writer = writer
        self._clock = clock

    def _read(self, query: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return query(connection)

    def _write(self, work: Callable[[Connection], T]) -> T:
        return self._writer.submit(work).result()

    # ---- for the provider ------------------------------------------------------------------------

    def hosts(self) -> tuple[InventoryHost, ...]:
        return self._read(stored.all_hosts)

    def places(self, group: str | None = None) -> tuple[Place, ...]:
        return self._read(lambda connection: stored.places(connection, group))

    def claim(self, group: str, request: HostRequest) -> tuple[Place, ...]:
        now = self._clock.now()
        return self._write(lambda connection: stored.claim(connection, group, request, now))

    def prepared(self, place: Place, python: str, folder: str) -> None:
        self._write(lambda connection: stored.prepared(connection, place, python, folder))

    def leave(self, place: Place) -> None:
        now = self._clock.now()
        self._write(lambda connection: stored.leave(connection, place, now))

    def give_back(self, place: Place) -> None:
        self._write(lambda connection: stored.give_back(connection, place))

    def failed(self, host: str, why: str) -> None:
        self._cordon(host, CordonedBy.PROBE, why)

    def answered(self, host: str, devices: Devices) -> None:
        """What a person wrote down goes before what was seen."""
        now, written = self._clock.now(), self.host(host).login
        kind = written.kind or devices.kind
        count = devices.count if written.devices is None else written.devices
        self._write(lambda connection: stored.answered(connection, host, now, kind, count))

    def due_for_a_look(self) -> tuple[InventoryHost, ...]:
        """Those that a probe cordoned, some time ago."""
        before = self._clock.now() - LOOK_AGAIN
        ill = (host for host in self.hosts() if host.ill)
        return tuple(host for host in ill if host.probed_at is None or host.probed_at < before)

    # ---- for people ------------------------------------------------------------------------------

    def host(self, name: str) -> InventoryHost:
        return self._read(lambda connection: stored.host(connection, name))

    def add(self, name: str, login: HostLogin, devices: Devices) -> InventoryHost:
        now, kind = self._clock.now(), login.kind or devices.kind
        count = devices.count if login.devices is None else login.devices

        def work(connection: Connection) -> None:
            stored.add(connection, name, login, kind, count, now)
            stored.answered(connection, name, now, kind, count)

        self._write(work)
        return self.host(name)

    def remove(self, name: str) -> None:
        self._write(lambda connection: stored.remove(connection, name))

    def cordon(self, name: str, why: str) -> None:
        self._cordon(name, CordonedBy.PERSON, why)

    def uncordon(self, name: str) -> None:
        self._write(lambda connection: stored.uncordon(connection, name))

    def follow_file(self, logins: Mapping[str, HostLogin]) -> None:
        now = self._clock.now()
        self._write(lambda connection: stored.follow_file(connection, logins, now))

    def _cordon(self, name: str, by: CordonedBy, why: str) -> None:
        now = self._clock.now()
        self._write(lambda connection: stored.cordon(connection, name, by, why, now))


@dataclass(frozen=True)
class SshHouse:
    """What the service has of the SSH provider."""

    inventory: Inventory
    connections: Connections
    provider: SshProvider
    tunnels: Tunnels
    checks: HostChecks = field(default_factory=HostChecks)

    def close(self) -> None:
        self.tunnels.close()
        self.connections.close()

    def first_key(self, address: str, port: int, jump: str | None) -> str:
        """The key that a host shows now. Raises `ProviderError`, `NoSuchHost`."""
        if jump is None:
            return shown_key(address, port)
        hosts = {host.name: host for host in self.inventory.hosts()}
        through = self.connections.shell(login_of(self.inventory.host(jump), hosts))
        return shown_key(address, port, through.transport)

    def enrol(self, name: str, login: HostLogin) -> InventoryHost:
        """Adds a host that can be entered, with the devices that it has.

        Raises `ProviderError`, `NameTaken`.
        """
        hosts = {host.name: host for host in self.inventory.hosts()}
        if name in hosts:
            raise stored.NameTaken(name)
        shell = connect(login_of(InventoryHost.draft(name, login), hosts))
        try:
            devices = probed(shell)
        finally:
            shell.close()
        return self.inventory.add(name, login, devices)

    def findings(self, name: str) -> tuple[Finding, ...]:
        """What is wrong with the host, and what to do. Raises `NoSuchHost`."""
        host = self.inventory.host(name)
        hosts = {one.name: one for one in self.inventory.hosts()}
        try:
            shell = self.connections.fresh(login_of(host, hosts))
        except ProviderError as error:
            return (entered(name, error),)
        try:
            found = self.checks.doctor(shell, host, self.provider.url)
            return (*found, *self._storage(name, shell, hosts))
        finally:
            shell.close()

    def _storage(
        self, name: str, shell: Shell, hosts: dict[str, InventoryHost]
    ) -> tuple[Finding, ...]:
        """Whether the host has the checkpoint folder of another one that could train with it."""
        for other in sorted(hosts):
            if other == name or hosts[other].cordon is not None or not hosts[other].devices:
                continue
            with contextlib.suppress(ProviderError):
                there = self.connections.shell(login_of(hosts[other], hosts))
                return self.checks.storage_of({other: there, name: shell})
        return self.checks.storage_of({name: shell})

    def look(self, name: str) -> InventoryHost:
        """Probes the host; whether it may be used then, it says itself. Raises `NoSuchHost`."""
        self.provider.mend(self.inventory.host(name))
        return self.inventory.host(name)
