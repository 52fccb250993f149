"""The parts of one running control plane, as one value that is handed around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from orchestrator.clock import Clock
from orchestrator.pace import Pace
from orchestrator.providers.base import Provider
from orchestrator.queueing import Queue, limits_of
from orchestrator.settings import Settings
from orchestrator.store.writer import Writer
from orchestrator.telemetry import Telemetry
from orchestrator.wakes import Wakes

if TYPE_CHECKING:  # paramiko may not be there
    from orchestrator.inventory import SshHouse


@dataclass(frozen=True)
class Service:
    """`read` is the engine for reads alone; all writes go through `writer`."""

    settings: Settings
    installation: str
    read: Engine
    writer: Writer
    wakes: Wakes
    clock: Clock
    providers: Mapping[str, Provider]
    listening_since: datetime
    ssh: SshHouse | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    pace: Pace = field(init=False)

    @cached_property
    def queue(self) -> Queue:
        """The line of runs that wait for hosts."""
        return Queue(lambda: limits_of(self.settings), self.clock)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pace", Pace(self.clock))
