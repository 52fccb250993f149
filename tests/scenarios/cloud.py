"""The provider of hosts of the simulated world, with the faults that the schedule asks of it.

Behaves as the local provider does, and as a cloud: it ends everything on a host before it starts
an agent there, a group exists until nothing of it is left, and it may take its hosts away.
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
from orchestrator.records import HostRequest
from tests.scenarios.agents import Agent, Line
from tests.scenarios.world import Group, Host, World
from worker.protocol import PROTOCOL_VERSION, Notice

LISTS_KEPT = 5
PRICE = 36.0  # of one host for an hour


class Cloud:
    """`faults` draws what goes wrong with one call: the words of a fault, or None.

    `asked` is told of each call that would make hosts, `given_back` of each that takes them away,
    at the moment of the call.
    """

    name = "local"

    def __init__(self, world: World, line: Line, faults: Callable[[str, str], str | None]) -> None:
        self.asked: Callable[[str], None] = lambda _: None
        self.given_back: Callable[[str], None] = lambda _: None
        self.hold_seconds: float | None = None
        self.stockout_until = 0.0
        self.cut_until = 0.0  # of the control plane from every cloud and every agent
        self._world = world
        self._line = line
        self._faults = faults
        self._made = 0
        self._lists: list[list[Owned]] = []

    def acquire(self, group: str, request: HostRequest) -> None:
        fault = self._begin("acquire", group)
        self.asked(group)
        if fault == "refused":
            raise ProvisionRefused("no quota for such hosts")
        found = self._world.groups.get(group)
        if found is not None and len(found.hosts) != request.hosts:
            raise ProvisionRefused(f"{group} exists with another shape")
        if found is None:
            if self.stockout_until > self._world.clock.monotonic():
                raise ProviderError("there is no more capacity in the zone")
            self._world.make(group, self._machines(group, request.hosts))
        self._end_call(fault)

    def _begin(self, call: str, group: str) -> str | None:
        fault = self._faults(call, group)
        if self.cut_until > self._world.clock.monotonic():
            raise ProviderError("no route to the cloud")
        if fault == "before":
            raise ProviderError(self._world.rng.choice(("timeout", "409 conflict", "503")))
        return fault

    def _end_call(self, fault: str | None) -> None:
        if fault == "after":
            raise ProviderError("timeout, but it was done")

    def _machines(self, group: str, hosts: int) -> list[Host]:
        rng = self._world.rng
        skews = [timedelta(seconds=rng.choice((0, 0, 0, -90, 90, 3))) for _ in range(hosts)]
        return [Host(group, index, skew) for index, skew in enumerate(skews)]

    def probe(self, group: str) -> GroupProbe:
        fault = self._begin("probe", group)
        found = self._world.groups.get(group)
        if found is None:
            return GroupProbe(exists=False, ready=False)
        if not found.up:
            found.up = self._world.rng.random() < 0.8
        if not found.up:
            return GroupProbe(exists=True, ready=False)
        now = self._world.clock.monotonic()
        unknown = fault == "unknown"
        seen = tuple(_seen(host, unknown or host.dark_until > now) for host in found.hosts)
        ready = found.taken is None
        return GroupProbe(True, ready, seen, found.taken, found.words)

    def launch(self, group: str, host: int, secret: str) -> None:
        fault = self._begin("launch", group)
        found = self._world.groups.get(group)
        if found is None:
            raise ProviderError(f"host group {group} has no host {host}")
        place = found.hosts[host]
        if place.off or place.dark_until > self._world.clock.monotonic():
            raise ProviderError("no route to the host")
        self._end(place)
        self._made += 1
        older = self._made % 5 == 0
        place.agent = Agent(self._world, place, secret, f"i{self._made}", self._line)
        place.agent.protocol = PROTOCOL_VERSION - older
        place.answered_at = self._world.clock.monotonic()
        self._end_call(fault)

    def release(self, group: str) -> None:
        fault = self._begin("release", group)
        found = self._world.groups.get(group)
        if found is None:
            return
        self.given_back(group)
        now = self._world.clock.monotonic()
        for host in found.hosts:
            if host.dark_until > now:
                continue
            if host.agent is not None and self._world.rng.random() < 0.7:
                host.agent.leave("its host is given back")
            self._end(host)
        self.forget(group)
        self._end_call(fault)

    def owned(self) -> Sequence[Owned]:
        """May be a list of a while ago."""
        fault = self._begin("owned", "")
        groups = self._world.groups
        self._lists.append([Owned(name, len(groups[name].hosts)) for name in sorted(groups)])
        self._lists = self._lists[-LISTS_KEPT:]
        return self._world.rng.choice(self._lists) if fault == "stale" else self._lists[-1]

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
        """The cloud has no trace of the group; a host out of its reach may live on for a while."""
        found = self._world.groups[group]
        self._world.unmake(group)
        now = self._world.clock.monotonic()
        for host in found.hosts:
            if host.dark_until > now and not host.off and host.live_trainer is not None:
                self._world.zombies.append(host)
            else:
                self.switch_off(host)

    def switch_off(self, host: Host) -> None:
        host.agent = None
        host.off = True
        if host.live_trainer is not None:
            self._world.exit(host.live_trainer)

    def take(self, group: Group, hosts: Sequence[Host], notice: Notice) -> None:
        """The cloud wants its hosts back: it says so, and they are off."""
        group.taken = notice
        group.words = f"instance was {notice}"
        for host in hosts:
            self.switch_off(host)


def _seen(host: Host, unknown: bool) -> HostProbe:
    if unknown:
        return HostProbe(host.index, "127.0.0.1", None, None)
    agent, trainer = host.agent is not None, host.live_trainer is not None
    return HostProbe(host.index, "127.0.0.1", agent, trainer)
