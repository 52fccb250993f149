"""The one clock of a simulated world: it moves only when the schedule says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2031, 5, 4, 12, tzinfo=UTC)
UNIX_EPOCH_JULIAN_DAY = 2440587.5


class FakeClock:
    def __init__(self) -> None:
        self._now = START
        self._elapsed = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._elapsed += seconds

    def julian_day(self, _what: str) -> float:
        """In place of SQLite's own, so that leases run out by this clock."""
        return UNIX_EPOCH_JULIAN_DAY + self._now.timestamp() / 86400.0
