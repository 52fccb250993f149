"""Figures and times as people read them. Pure; imports nothing of Longhaul."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def clean(line: str) -> str:
    """A machine's words without what would steer a terminal."""
    return _CONTROL.sub("", _ESCAPES.sub("", line))


def count(number: int) -> str:
    """1,048 as it is; from a million on with three figures and a unit."""
    if abs(number) < 1_000_000:
        return f"{number:,}"
    return "".join(_three_figures(number / 1e6, ("M", "B", "T")))


def size(number: float) -> str:
    """Bytes, in decimal units."""
    if abs(number) < 999.5:
        return f"{number:.0f} B"
    return " ".join(_three_figures(number / 1000, ("kB", "MB", "GB", "TB")))


def _three_figures(number: float, units: Sequence[str]) -> tuple[str, str]:
    """In the first unit in which three figures do not round up to a thousand."""
    for unit in units[:-1]:
        if abs(number) < 999.5:
            return f"{number:.3g}", unit
        number /= 1000
    return (f"{number:.3g}" if abs(number) < 999.5 else f"{number:,.0f}"), units[-1]


def hours(number: float) -> str:
    """Hours as a duration, long ones in days."""
    return seconds(number * 3600)


def money(amount: float, currency: str) -> str:
    """Two decimals; what is less than a cent is said so."""
    if 0 < amount < 0.01:
        return f"less than 0.01 {currency}"
    return f"{amount:,.2f} {currency}"


def seconds(number: float) -> str:
    """A duration in its two largest units, with decimals while it is short."""
    if number < 0.995:
        return f"{max(number, 0.0):.2f} s"
    if number < 9.95:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def ago(at: datetime, now: datetime) -> str:
    """How long since, in its largest unit."""
    passed = max((now - at).total_seconds(), 0.0)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= length:
            return f"{int(passed // length)} {unit} ago"
    return f"{int(passed)} s ago"


def clock(at: datetime) -> str:
    """The local time of day, to the second."""
    return at.astimezone().strftime("%H:%M:%S")


def plural(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def share(part: float) -> str:
    return f"{100 * part:.1f}%"
