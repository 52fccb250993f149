"""A provider of hosts that exist only in memory, for tests of the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.providers.base import GroupProbe, HostProbe, Owned, ProviderError
from orchestrator.records import HostRequest


@dataclass
class FakeGroup:
    hosts: int
    devices: int = 1
    agents: dict[int, bool] = field(default_factory=dict)
    trainers: dict[int, bool] = field(default_factory=dict)


class FakeProvider:
    """`on_launch` is called in the provider's thread. `fail` names a call and what it raises.

    A call named in `hang` waits until the test sets the event.
    """

    name = "local"
    hold_seconds: float | None = None

    def __init__(self, on_launch: Callable[[str, int, str], None] = lambda *_: None) -> None:
        self.on_launch = on_launch
        self.groups: dict[str, FakeGroup] = {}
        self.calls: list[tuple[str, str]] = []
        self.fail: dict[str, Exception] = {}
        self.hang: dict[str, threading.Event] = {}
        self.under_way: dict[str, int] = {}
        self.most_at_once = 0
        self._lock = threading.Lock()

    def acquire(self, group: str, request: HostRequest) -> None:
        self._enter("acquire", group)
        self.groups.setdefault(group, FakeGroup(request.hosts, request.devices))

    def probe(self, group: str) -> GroupProbe:
        if "probe" in self.hang:
            self.hang["probe"].wait(30)
        if "probe" in self.fail:
            raise self.fail["probe"]
        found = self.groups.get(group)
        if found is None:
            return GroupProbe(exists=False, ready=False)
        hosts = tuple(
            HostProbe(
                index, "127.0.0.1", found.agents.get(index, False), found.trainers.get(index, False)
            )
            for index in range(found.hosts)
        )
        return GroupProbe(exists=True, ready=True, hosts=hosts)

    def launch(self, group: str, host: int, secret: str) -> None:
        self._enter("launch", group)
        if group not in self.groups:
            raise ProviderError(f"there is no group {group}")
        self.groups[group].agents[host] = True
        self.on_launch(group, host, secret)

    def release(self, group: str) -> None:
        self._enter("release", group)
        self.groups.pop(group, None)

    def owned(self) -> Sequence[Owned]:
        if "owned" in self.hang:
            self.hang["owned"].wait(30)
        if "owned" in self.fail:
            raise self.fail["owned"]
        return [
            Owned(name, group.hosts, group.devices) for name, group in sorted(self.groups.items())
        ]

    def announce(self, control_url: str) -> None:
        """Nobody to tell."""

    def _enter(self, call: str, group: str) -> None:
        with self._lock:
            self.calls.append((call, group))
            self.under_way[group] = self.under_way.get(group, 0) + 1
            self.most_at_once = max(self.most_at_once, self.under_way[group])
        try:
            if call in self.hang:
                self.hang[call].wait(30)
            if call in self.fail:
                raise self.fail[call]
        finally:
            with self._lock:
                self.under_way[group] -= 1
