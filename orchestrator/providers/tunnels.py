"""The tunnels of one service: a host's is opened when it is first asked for, and then kept.

Must not import the store, the API or another provider.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator.providers.tunnel import Address, Connection, Tunnel


class Tunnels:
    """`connect` makes a connection to the host of a name, for its tunnel alone. `moved` is told the
    name, and the URL at which that host finds the control plane from now on."""

    def __init__(
        self,
        connect: Callable[[str], Connection],
        target: Address,
        moved: Callable[[str, str], None],
    ) -> None:
        self._connect = connect
        self._target = target
        self._moved = moved
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._open: dict[str, Tunnel] = {}

    def url(self, host: str, port: int = 0) -> str:
        """Where the host finds the control plane. Opens its tunnel, at `port` if that can be had:
        the one that its agents know. Raises what `connect` does, and `TunnelRefused`."""
        with self._lock:
            lock = self._locks.setdefault(host, threading.Lock())
        with lock:
            tunnel = self._open.get(host)
            if tunnel is None:
                tunnel = Tunnel(
                    host,
                    lambda: self._connect(host),
                    self._target,
                    lambda url: self._moved(host, url),
                    port,
                )
                tunnel.open()
                self._open[host] = tunnel
            return tunnel.url

    def close(self) -> None:
        for tunnel in self._open.values():
            tunnel.close()
