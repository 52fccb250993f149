"""The bill of the fake cloud: each second that a resource was there, in which state, at what price.

A queued resource costs nothing by itself, but its seconds are written down. A node costs from when
its VMs are ready until nothing of it is left, in whatever state: dearer than with the cloud.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

HOUR = 3600.0


@dataclass(frozen=True)
class Line:
    """`until` is None while it lasts. `price` is of the whole resource for an hour."""

    kind: str
    zone: str
    name: str
    type: str
    state: str
    since: float
    until: float | None
    price: float

    def seconds(self, now: float) -> float:
        return (now if self.until is None else self.until) - self.since

    def cost(self, now: float) -> float:
        return self.seconds(now) / HOUR * self.price


class Bill:
    def __init__(self, log: Path | None = None) -> None:
        self.lines: list[Line] = []
        self._open: dict[tuple[str, str, str], int] = {}
        self._paid: set[tuple[str, str, str]] = set()
        self._log = log

    def note(
        self, kind: str, zone: str, name: str, state: str | None, now: float, **of: object
    ) -> None:
        """The resource is in this state from now on; None: it is gone."""
        key = (kind, zone, name)
        number = self._open.pop(key, None)
        if number is not None:
            line = self.lines[number]
            if line.state == state:
                self._open[key] = number
                return
            self.lines[number] = replace(line, until=now)
            self._write(self.lines[number])
        if state is None:
            self._paid.discard(key)
            return
        if state == "READY":
            self._paid.add(key)
        price = float(str(of["price"])) if key in self._paid else 0.0
        self._open[key] = len(self.lines)
        self.lines.append(Line(kind, zone, name, str(of["type"]), state, now, None, price))

    def of(self, name: str) -> Iterator[Line]:
        return (line for line in self.lines if line.name.startswith(name))

    def cost(self, name: str, now: float) -> float:
        """Of everything whose name begins so."""
        return sum(line.cost(now) for line in self.of(name))

    @property
    def running(self) -> list[Line]:
        """What goes on being written down now."""
        return [self.lines[number] for number in self._open.values()]

    def _write(self, line: Line) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(line)) + "\n")
