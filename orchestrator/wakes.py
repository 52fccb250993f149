"""Wake-ups between the parts of one process.

A wake-up only makes somebody look sooner: losing one costs latency, never correctness. Topics are
counted, so that a notice that falls between looking and waiting is not missed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict

LOOP = "loop"


def run_topic(run_id: str) -> str:
    return f"run:{run_id}"


def decision_topic(run_id: str) -> str:
    """Something arrived that a decision about the run may depend on; notify `LOOP` with it."""
    return f"decide:{run_id}"


def group_topic(group: str) -> str:
    return f"group:{group}"


class Wakes:
    """Bound to the event loop that it is made in; `notify` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._counts: dict[str, int] = defaultdict(int)
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)

    def count(self, topic: str) -> int:
        """To be read before looking; hand it to `wait` afterwards."""
        return self._counts[topic]

    def notify(self, *topics: str) -> None:
        with contextlib.suppress(RuntimeError):  # the service is shutting down: nobody waits
            self._loop.call_soon_threadsafe(self._notify, topics)

    def _notify(self, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self._counts[topic] += 1
            for event in self._waiters.get(topic, ()):
                event.set()

    async def wait(self, topic: str, seen: int, timeout: float) -> bool:
        """Waits until the topic's count differs from `seen`; False when `timeout` s passed."""
        if self._counts[topic] != seen:
            return True
        event = asyncio.Event()
        self._waiters[topic].add(event)
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except TimeoutError:
            return False
        finally:
            self._waiters[topic].discard(event)
            if not self._waiters[topic]:
                del self._waiters[topic]
        return True
