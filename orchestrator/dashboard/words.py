"""Numbers and times as people read them: always with a unit, never more digits than are meant."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NARROW_SPACE = "\N{NO-BREAK SPACE}"


def count(value: float) -> str:
    """41870 -> '41,870'."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """3_120_000_000 -> '3.12 B'; three significant digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_digits(value / size)}{NARROW_SPACE}{unit}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in decimal units: 12_600_000 -> '12.6 MB'."""
    for unit_size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit_size:
            return f"{_digits(value / unit_size)}{NARROW_SPACE}{unit}"
    return f"{value:.0f}{NARROW_SPACE}B"


def _digits(value: float) -> str:
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, 3 - whole)}f}"


def percent(share: float) -> str:
    """0.957 -> '95.7%'; never rounded up to 100% or down to 0%."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share * 100:.1f}%"


def loss(value: float | None) -> str:
    """Four significant digits; None is a loss that was not a number."""
    if value is None or not math.isfinite(value):
        return "not a number"
    if value == 0 or abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.4g}"
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, 4 - whole)}f}"


def duration(seconds: float) -> str:
    """The two largest units that matter: '0.34 s', '12 s', '41 m 20 s', '1 h 27 m', '2 d 4 h'."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        text = f"{seconds:.2f}" if seconds < 1 else f"{seconds:.1f}"
        return f"{text}{NARROW_SPACE}s"
    whole = round(seconds)
    if whole < 3600:
        return _pair(whole, 60, "m", 1, "s") if whole >= 60 else f"{whole}{NARROW_SPACE}s"
    if whole < 86_400 - 30:  # half a minute less rounds up to a day
        return _pair(round(whole / 60) * 60, 3600, "h", 60, "m")
    return _pair(round(whole / 3600) * 3600, 86_400, "d", 3600, "h")


def _pair(seconds: int, large: int, large_unit: str, small: int, small_unit: str) -> str:
    head, rest = divmod(seconds, large)
    tail = f"{NARROW_SPACE}{rest // small}{NARROW_SPACE}{small_unit}" if rest else ""
    return f"{head}{NARROW_SPACE}{large_unit}{tail}"


def coarse(seconds: float) -> str:
    """The largest unit alone: '6 m', '7 h', '2 d'; for ages, where the second unit is noise."""
    seconds = max(0.0, seconds)
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{int(seconds // length)}{NARROW_SPACE}{unit}"
    return f"{int(seconds)}{NARROW_SPACE}s"


def absolute(at: datetime) -> str:
    """'Fri 20 Nov 2026 07:29:10 UTC'."""
    return at.astimezone(UTC).strftime("%a %d %b %Y %H:%M:%S UTC")


def clock(at: datetime) -> str:
    """'07:29:10', UTC."""
    return at.astimezone(UTC).strftime("%H:%M:%S")


def day_clock(at: datetime) -> str:
    """'Sun 07:29', UTC."""
    return at.astimezone(UTC).strftime("%a %H:%M")


def iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")


def money(amount: float, currency: str) -> str:
    """8.64 -> '8.64 USD'; what is less than a cent is said so."""
    if 0 < amount < 0.01:
        return f"less than 0.01 {currency}"
    return f"{amount:,.2f} {currency}"


def local(address: str) -> str:
    """The way on this service alone: 'https://lh.example/runbook#hung' -> '/runbook#hung'."""
    at = address.find("/runbook")
    return address[at:] if at >= 0 else address


def times(number: int) -> str:
    """How often: 'once', 'twice', '3 times'."""
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def plural(number: int, one: str, many: str | None = None) -> str:
    """1 -> '1 run'; 2 -> '2 runs'."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def join(parts: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
