"""How often the cloud is asked what it has of a group: seldom enough not to be turned away.

What was seen is kept for a few seconds, and a zone in which hosts serve is looked at alone most of
the time. Nothing that a restart would lose: it only spares calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.providers.tpu_cloud import TpuCloud
from orchestrator.providers.tpu_errors import SlowDown
from orchestrator.providers.tpu_places import Place, newest

EVERYWHERE_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class _Look:
    places: tuple[Place, ...]
    at: float
    everywhere_at: float


class Looks:
    """`every_seconds` is how old an answer may be; `monotonic` tells the time."""

    def __init__(
        self,
        cloud: TpuCloud,
        zones: Sequence[str],
        every_seconds: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._cloud = cloud
        self._zones = tuple(zones)
        self._every = every_seconds
        self._monotonic = monotonic
        self._seen: dict[str, _Look] = {}
        self._pause = 0.0
        self._not_before = 0.0

    def recent(self, name: str) -> Sequence[Place]:
        """Not older than a few seconds, unless the cloud asks for fewer calls."""
        now, last = self._monotonic(), self._seen.get(name)
        if last is not None and now - last.at < self._every:
            return last.places
        if now < self._not_before:
            if last is not None:
                return last.places
            raise SlowDown(f"look at {name}", "the cloud asked for fewer calls a moment ago")
        try:
            look = self._look(name, last, now)
        except SlowDown:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            self._not_before = now + self._pause
            if last is not None:
                return last.places
            raise
        self._pause = 0.0
        self._seen[name] = look
        return look.places

    def everywhere(self, name: str) -> Sequence[Place]:
        """As it is now, in all zones."""
        now = self._monotonic()
        self._seen[name] = _Look(self._in_all(name), now, now)
        return self._seen[name].places

    def forget(self, name: str) -> None:
        """Something was just done to it."""
        self._seen.pop(name, None)

    def _look(self, name: str, last: _Look | None, now: float) -> _Look:
        if last is not None and now - last.everywhere_at < EVERYWHERE_SECONDS:
            own = newest(last.places)
            if own is not None and own.serves:
                here = self._at(name, own.zone)
                if here.serves:
                    places = tuple(here if one.zone == here.zone else one for one in last.places)
                    return replace(last, places=places, at=now)
        return _Look(self._in_all(name), now, now)

    def _in_all(self, name: str) -> tuple[Place, ...]:
        return tuple(self._at(name, zone) for zone in self._zones)

    def _at(self, name: str, zone: str) -> Place:
        """The request first: one that is active has its node, unless that is gone."""
        request = self._cloud.request(zone, name)
        return Place(zone, request, self._cloud.node(zone, name))
