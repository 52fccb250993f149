"""Wake-ups between the parts of one process, and between replicas where there is a relay.

A wake-up only makes somebody look sooner: losing one costs latency, never correctness. Topics are
counted, so that a notice that falls between looking and waiting is not missed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

LOOP = "loop"
_DECIDE = "decide:"


def run_topic(run_id: str) -> str:
    return f"run:{run_id}"


def decision_topic(run_id: str) -> str:
    """Something arrived that a decision about the run may depend on; notify `LOOP` with it."""
    return f"{_DECIDE}{run_id}"


def group_topic(group: str) -> str:
    return f"group:{group}"


class Relay(Protocol):
    """Carries wake-ups to the other replicas."""

    @property
    def connected(self) -> bool:
        """Whether wake-ups of other replicas arrive here now."""
        ...

    def send(self, topics: tuple[str, ...]) -> None:
        """Returns at once; called from any thread."""
        ...


@dataclass(frozen=True)
class ToDecide:
    """The runs that something happened to; `any_run` when it was not said which."""

    runs: tuple[str, ...]
    any_run: bool


class Wakes:
    """Bound to the event loop that it is made in; `notify` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._counts: dict[str, int] = defaultdict(int)
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._runs: dict[str, None] = {}
        self._any_run = False
        self._relay: Relay | None = None

    def relay_to(self, relay: Relay) -> None:
        """From now on other replicas hear of what happens here."""
        self._relay = relay

    @property
    def complete(self) -> bool:
        """Whether what happens on other replicas wakes somebody here too, if there can be any."""
        return self._relay is not None and self._relay.connected

    def count(self, topic: str) -> int:
        """To be read before looking; hand it to `wait` afterwards."""
        return self._counts[topic]

    def awaited(self, topic: str) -> bool:
        """Whether somebody waits here for it now."""
        return topic in self._waiters

    def notify(self, *topics: str) -> None:
        self.hear(topics)
        if self._relay is not None:
            self._relay.send(topics)

    def hear(self, topics: tuple[str, ...]) -> None:
        """Wakes those who wait here, and nobody elsewhere."""
        with contextlib.suppress(RuntimeError):  # the service is shutting down: nobody waits
            self._loop.call_soon_threadsafe(self._notify, topics)

    def to_decide(self) -> ToDecide:
        """What became due since the last call; for the one loop that decides."""
        found = ToDecide(tuple(self._runs), self._any_run)
        self._runs, self._any_run = {}, False
        return found

    def _notify(self, topics: tuple[str, ...]) -> None:
        if LOOP in topics:
            self._note_decisions(topics)
        for topic in topics:
            self._counts[topic] += 1
            for event in self._waiters.get(topic, ()):
                event.set()

    def _note_decisions(self, topics: Iterable[str]) -> None:
        named = [topic.removeprefix(_DECIDE) for topic in topics if topic.startswith(_DECIDE)]
        self._runs.update(dict.fromkeys(named))
        self._any_run |= not named

    async def wait(self, topic: str, seen: int, timeout: float) -> bool:
        """Waits until the topic's count differs from `seen`; False when `timeout` s passed."""
        if self._counts[topic] != seen:
            return True
        event = asyncio.Event()
        self._waiters[topic].add(event)
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            self._waiters[topic].discard(event)
            if not self._waiters[topic]:
                del self._waiters[topic]
        return True
