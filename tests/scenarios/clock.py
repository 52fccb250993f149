"""The clocks of a simulated world: they move only when the schedule says so.

`FakeClock` is the true time. `PlaneClock` is the wall clock of the control plane and its database,
which may jump; its monotonic clock never does.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

START = datetime(2031, 5, 4, 12, tzinfo=UTC)
UNIX_EPOCH_JULIAN_DAY = 2440587.5


class FakeClock:
    """`passed` is told whenever time has passed."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        self.passed: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        return START + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds
        self.passed()


class PlaneClock:
    """Wrong by `error`, and by more after each jump."""

    def __init__(self, true: FakeClock) -> None:
        self._true = true
        self.error = timedelta(0)

    def now(self) -> datetime:
        return self._true.now() + self.error

    def monotonic(self) -> float:
        return self._true.monotonic()

    def jump(self, seconds: float) -> None:
        self.error += timedelta(seconds=seconds)

    def julian_day(self, _what: str) -> float:
        """In place of SQLite's own, so that leases run out by this clock."""
        return UNIX_EPOCH_JULIAN_DAY + self.now().timestamp() / 86400.0
