"""What goes wrong, when, and for which calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass

WORDS = {
    403: "The caller does not have permission",
    429: "The object exceeded the rate limit for object mutation operations.",
    503: "We encountered an internal error. Please try again.",
}


@dataclass
class Fault:
    """Answers calls with `status`, or with None only after `seconds`.

    It meets those whose verb is in `verbs` (all, where there are none) and whose object's name has
    `part` in it: the first `times` of them, or all until it is lifted.
    """

    status: int | None = None
    seconds: float = 0.0
    times: int | None = None
    verbs: frozenset[str] = frozenset()
    part: str = ""
    met: int = 0

    def meets(self, verb: str, name: str) -> bool:
        left = self.times is None or self.met < self.times
        return left and (not self.verbs or verb in self.verbs) and self.part in name


class Faults:
    """Those that hold now; may be changed from any thread. `denied` are permissions that lack."""

    def __init__(self) -> None:
        self._held: list[Fault] = []
        self._lock = threading.Lock()
        self.denied: frozenset[str] = frozenset()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._held.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self.denied = frozenset()

    def next(self, verb: str, name: str) -> Fault | None:
        """The fault that this call meets, if one does."""
        with self._lock:
            for fault in self._held:
                if fault.meets(verb, name):
                    fault.met += 1
                    return fault
        return None
