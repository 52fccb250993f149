"""The provider of hosts of the simulated world, with the faults that the schedule asks of it.

Behaves as the local provider does: it ends everything on a host before it starts an agent there,
and a group exists until nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from orchestrator.providers.base import (
    GroupProbe,
    HostProbe,
    Owned,
    ProviderError,
    ProvisionRefused,
)
from tests.scenarios.agents import Agent, Line
from tests.scenarios.world import Group, Host, World


class Cloud:
    """`faults` draws what goes wrong with one call: the words of a fault, or None."""

    name = "local"
    hold_seconds: float | None = None

    def __init__(self, world: World, line: Line, faults: Callable[[str, str], str | None]) -> None:
        self._world = world
        self._line = line
        self._faults = faults
        self._made = 0

    def acquire(self, group: str, hosts: int, devices: int) -> None:
        fault = self._faults("acquire", group)
        if fault == "refused":
            raise ProvisionRefused("no quota for such hosts")
        if fault == "before":
            raise ProviderError("timeout")
        found = self._world.groups.get(group)
        if found is not None and len(found.hosts) != hosts:
            raise ProvisionRefused(f"{group} exists with another shape")
        if found is None:
            self._make(group, hosts)
        if fault == "after":
            raise ProviderError("timeout, but it was done")

    def _make(self, group: str, hosts: int) -> None:
        rng, run_id = self._world.rng, group.split("-")[2]
        skews = [timedelta(seconds=rng.choice((0, 0, 0, -90, 90, 3))) for _ in range(hosts)]
        made = [Host(group, index, skew) for index, skew in enumerate(skews)]
        self._world.groups[group] = Group(group, run_id, made, self._world.clock.monotonic())

    def probe(self, group: str) -> GroupProbe:
        fault = self._faults("probe", group)
        if fault == "before":
            raise ProviderError("timeout")
        found = self._world.groups.get(group)
        if found is None:
            return GroupProbe(exists=False, ready=False)
        if not found.up:
            found.up = self._world.rng.random() < 0.8
        if not found.up:
            return GroupProbe(exists=True, ready=False)
        unknown = fault == "unknown"
        return GroupProbe(True, True, tuple(_seen(host, unknown) for host in found.hosts))

    def launch(self, group: str, host: int, secret: str) -> None:
        fault = self._faults("launch", group)
        found = self._world.groups.get(group)
        if found is None:
            raise ProviderError(f"host group {group} has no host {host}")
        if fault == "before":
            raise ProviderError("timeout")
        place = found.hosts[host]
        self._end(place)
        self._made += 1
        place.agent = Agent(self._world, place, secret, f"i{self._made}", self._line)
        if fault == "after":
            raise ProviderError("timeout, but it was started")

    def release(self, group: str) -> None:
        fault = self._faults("release", group)
        found = self._world.groups.get(group)
        if found is None:
            return
        if fault == "before":
            raise ProviderError("timeout")
        for host in found.hosts:
            if host.agent is not None and self._world.rng.random() < 0.7:
                host.agent.leave("its host is given back")
            self._end(host)
        self.forget(group)
        if fault == "after":
            raise ProviderError("timeout, but it was released")

    def owned(self) -> Sequence[Owned]:
        return [Owned(name, len(group.hosts)) for name, group in sorted(self._world.groups.items())]

    def announce(self, control_url: str) -> None:
        """Nobody to tell."""

    # ---- what happens to hosts -------------------------------------------------------------------

    def _end(self, host: Host) -> None:
        """Kills agent and trainer; one that lingers is dead a little later."""
        host.agent = None
        trainer = host.live_trainer
        if trainer is None:
            return
        if trainer.lingers is not None:
            trainer.lingers -= 1
            if trainer.lingers > 0:
                raise ProviderError("processes did not end in time")
        self._world.exit(trainer)

    def forget(self, group: str) -> None:
        """The group's hosts are gone, and everything on them."""
        found = self._world.groups.pop(group)
        for host in found.hosts:
            host.agent = None
            if host.live_trainer is not None:
                self._world.exit(host.live_trainer)
        spent = self._world.clock.monotonic() - found.made_at
        self._world.billed[group] = self._world.billed.get(group, 0.0) + spent


def _seen(host: Host, unknown: bool) -> HostProbe:
    agent, trainer = host.agent is not None, host.live_trainer is not None
    if unknown:
        return HostProbe(host.index, "127.0.0.1", None, None)
    return HostProbe(host.index, "127.0.0.1", agent, trainer)
