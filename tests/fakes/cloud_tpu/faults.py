"""What goes wrong in the fake cloud, set by a test or drawn by hand; nothing does by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Full(StrEnum):
    """How a zone without capacity says so."""

    AT_ONCE = "at once"  # the create is refused
    LATER = "later"  # the request fails after it has waited
    NEVER = "never"  # the request waits for ever


@dataclass
class Faults:
    """`full`, `quota` (chips), `offers` (types) and `denied` (a method's name: words) hold until
    they are changed; what counts down is used up, one a call.

    `late_fills`: the next creates run into their deadline, and are filled so many seconds later;
    None: never. `conflicts`: the next creates are answered 409 although nothing is there;
    `conflicts_after`: although they were done. `fail_with`: what the next requests fail with, after
    they have waited: a status and words. `lost_deletes`: the next deletes come to nothing, after a
    while. `slow_deletes` and `stale_seconds` (of lists) and `late_addresses` are in seconds.
    `unavailable`: the next calls of a method are answered 503. `hang`: a method that never answers.
    """

    full: dict[str, Full] = field(default_factory=dict)
    quota: dict[str, int] = field(default_factory=dict)
    offers: dict[str, set[str]] = field(default_factory=dict)
    denied: dict[str, str] = field(default_factory=dict)
    late_fills: list[float | None] = field(default_factory=list)
    conflicts: int = 0
    conflicts_after: int = 0
    fail_with: list[tuple[int, str]] = field(default_factory=list)
    lost_deletes: int = 0
    slow_deletes: float = 0.0
    stale_seconds: float = 0.0
    late_addresses: float = 0.0
    unavailable: dict[str, int] = field(default_factory=dict)
    hang: set[str] = field(default_factory=set)
    reads_a_second: float | None = None
    burst: float = 5.0
