"""How often an address may offer wrong secrets.

Owns the count in memory: a service that starts again forgets it. A secret is counted once, so a
page or a script that goes on with a session or token that is over is no attack; many different
ones are. Only the address that guesses is refused, a good token from elsewhere never is.
"""

from __future__ import annotations

import ipaddress
import math
import threading
from dataclasses import dataclass, field

GUESSES = 10
WINDOW_SECONDS = 300.0
MOST_ADDRESSES = 10_000


@dataclass
class _Guesses:
    began: float
    seen: set[str] = field(default_factory=set[str])


class GuessLimit:
    """Different wrong secrets for each address within a window; times are monotonic seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guesses: dict[str, _Guesses] = {}

    def wait_seconds(self, remote: str | None, now: float) -> int:
        """How long the address has to wait before it is heard again; 0: it is heard."""
        with self._lock:
            found = self._current(_network(remote), now)
            if found is None or len(found.seen) < GUESSES:
                return 0
            return max(1, math.ceil(found.began + WINDOW_SECONDS - now))

    def wrong(self, remote: str | None, sha256: str, now: float) -> None:
        """Counts a secret that is nobody's, by its hash."""
        with self._lock:
            key = _network(remote)
            found = self._current(key, now)
            if found is None:
                found = self._guesses[key] = _Guesses(now)
                if len(self._guesses) > MOST_ADDRESSES:
                    del self._guesses[next(iter(self._guesses))]
            if len(found.seen) < GUESSES:
                found.seen.add(sha256)

    def _current(self, key: str, now: float) -> _Guesses | None:
        found = self._guesses.get(key)
        if found is not None and now - found.began >= WINDOW_SECONDS:
            del self._guesses[key]
            return None
        return found


def _network(remote: str | None) -> str:
    """An IPv6 customer has a whole /64, so that counts as one address."""
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return remote or ""
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
