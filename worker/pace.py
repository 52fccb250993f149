"""How fast this process trains, told once in a while. Pure.

A gang is as fast as its slowest process, and by its steps' times all processes look alike: the
others wait for it. What tells them apart is the part of a step in which a process itself worked.
"""

from __future__ import annotations

from statistics import median

from worker.protocol import StepPace

WINDOW_SECONDS = 60.0
LEAST_STEPS = 5


class PaceWindow:
    """Gathers steps for `WINDOW_SECONDS`, then tells their medians and begins anew."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._own: list[float] = []
        self._data_waits: list[float] = []

    def add(self, step: int, seconds: float, own: float, data_wait: float) -> StepPace | None:
        """Takes a step that was just completed; answers the medians when a window is full."""
        self._seconds.append(seconds)
        self._own.append(min(own, seconds))
        self._data_waits.append(data_wait)
        if len(self._seconds) < LEAST_STEPS or sum(self._seconds) < WINDOW_SECONDS:
            return None
        told = StepPace(
            step=step,
            steps=len(self._seconds),
            seconds=median(self._seconds),
            own=median(self._own),
            data_wait=median(self._data_waits),
        )
        for gathered in (self._seconds, self._own, self._data_waits):
            gathered.clear()
        return told
