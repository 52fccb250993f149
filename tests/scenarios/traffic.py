"""The way between agents and the control plane, on which requests are lost, late and doubled.

Owns what becomes of a request; remembers in the world what the control plane answered with yes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from orchestrator.store.callers import AgentRefused
from tests.scenarios.agents import Away
from tests.scenarios.plane import Api
from tests.scenarios.world import Host, World
from worker.protocol import AgentReport, CheckpointAccepted, CheckpointOffer

FATES = {"request lost": 2, "request late": 2, "answer lost": 2, "request twice": 2}
LATE_SECONDS = 15.0


class Log(Protocol):
    def note(self, words: str) -> None: ...
    def cover_group(self, fault: str, group: str) -> None: ...


@dataclass
class Ghost:
    """A request whose sender gave up on it, and which arrives all the same."""

    message: Any
    secret: str
    due: float


class Traffic:
    """`fate` is asked for each request; `up` says whether anybody answers at all."""

    def __init__(
        self, world: World, api: Api, log: Log, up: Callable[[], bool], quiet: Callable[[], bool]
    ) -> None:
        self.ghosts: list[Ghost] = []
        self.armed: str | None = None
        self.cut_until = 0.0  # of the control plane from everybody
        self._world = world
        self._api = api
        self._log = log
        self._up = up
        self._quiet = quiet

    @property
    def _rng(self) -> Random:
        return self._world.rng

    def call(self, message: Any, secret: str) -> Any:
        """An agent's request on its way. Raises `Away` or what the control plane refuses with."""
        if not self._up() or self._cut(message):
            raise Away
        fate = self._fate()
        if fate is not None:
            self._log.cover_group(fate, message.group)
        if fate == "request lost":
            raise Away
        if fate == "request late":
            due = self._world.clock.monotonic() + self._rng.expovariate(1 / LATE_SECONDS)
            self.ghosts.append(Ghost(message, secret, due))
            raise Away
        answer = self._receive(message, secret)
        if fate == "answer lost":
            raise Away
        if fate == "request twice":
            self.ghosts.append(Ghost(message, secret, self._world.clock.monotonic()))
        return answer

    def _fate(self) -> str | None:
        armed, self.armed = self.armed, None
        if armed is not None or self._quiet():
            return armed
        if self._rng.random() * 100 >= sum(FATES.values()):
            return None
        return self._rng.choices(list(FATES), list(FATES.values()))[0]

    def hear(self) -> None:
        """Whoever is in reach is answered all the while, if only to its heartbeats."""
        now = self._world.clock.monotonic()
        if self._up() and self.cut_until <= now:
            for host in (*self._world.hosts(), *self._world.zombies):
                if host.cut_until <= now:
                    host.answered_at = now

    def _cut(self, message: Any) -> bool:
        now = self._world.clock.monotonic()
        host = self._host(message.group, message.host)
        return self.cut_until > now or (host is not None and host.cut_until > now)

    def _host(self, group: str, index: int) -> Host | None:
        found = self._world.groups.get(group)
        if found is not None:
            return found.hosts[index]
        lost = (host for host in self._world.zombies if (host.group, host.index) == (group, index))
        return next(lost, None)

    def late(self) -> None:
        """One of the requests that are due now arrives."""
        due = [ghost for ghost in self.ghosts if ghost.due <= self._world.clock.monotonic()]
        if not due or not self._up():
            return
        ghost = self._rng.choice(due)
        self.ghosts.remove(ghost)
        try:
            self._receive(ghost.message, ghost.secret, "late ")
        except AgentRefused:
            return

    def _receive(self, message: Any, secret: str, when: str = "") -> Any:
        what = f"{when}{type(message).__name__} of {message.group} host {message.host}"
        try:
            answer = self._api.receive(message, secret)
        except AgentRefused as refusal:
            self._log.note(f"{what}: {refusal}")
            raise
        told = len(message.events) if isinstance(message, AgentReport) else ""
        commands = [command.kind for command in getattr(answer, "commands", ())]
        self._log.note(f"{what} {told} -> {commands}")
        if isinstance(message, CheckpointOffer) and isinstance(answer, CheckpointAccepted):
            self._world.storage[message.checkpoint.uri].counted = True
        return answer
