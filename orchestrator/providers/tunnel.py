"""A way to the control plane for a host that has none: a port there that leads here, over SSH.

Owns the reverse port forward of one host, kept alive and made again when its connection breaks, on
the same port where that can be had. Must not import the store, the API or another provider; knows
SSH by the `Connection` that it is given.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from orchestrator.providers.base import ProviderError
from orchestrator.providers.pump import pump

LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
MOST_CONNECTIONS = 64  # whoever is on the host can open them
Address = tuple[str, int]
Handler = Callable[[Any, Address, Address], None]

log = structlog.get_logger("longhaul.tunnel")


class Transport(Protocol):
    """paramiko's, as far as it matters here."""

    def request_port_forward(
        self, address: str, port: int, handler: Handler | None = None
    ) -> int: ...


class Connection(Protocol):
    """One SSH connection that notices by itself when it is cut."""

    @property
    def transport(self) -> Transport: ...

    @property
    def alive(self) -> bool: ...

    def close(self) -> None: ...


class TunnelRefused(ProviderError):
    """The host's SSH server forwards no port to here."""

    hint = "Set AllowTcpForwarding yes (or remote) in its sshd_config, and restart its sshd."


class Tunnel:
    """`connect` makes a connection of the tunnel's own; the control plane listens at `target`.

    `moved` is told where the host finds the control plane whenever that is another place than
    before, the first time too; agents must learn of it. Should it fail it is told again. `port` is
    asked for first: the one that agents know from before a restart of the control plane, 0 for any.
    """

    def __init__(
        self,
        host: str,
        connect: Callable[[], Connection],
        target: Address,
        moved: Callable[[str], None],
        port: int = 0,
    ) -> None:
        self._host = host
        self._connect = connect
        self._target = target
        self._moved = moved
        self._port = port
        self._told: int | None = None
        self._connection: Connection | None = None
        self._closed = threading.Event()
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._keeper: threading.Thread | None = None

    @property
    def port(self) -> int:
        """On the host's loopback address; 0 before the first time."""
        return self._port

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def up(self) -> bool:
        return self._connection is not None and self._connection.alive

    def open(self) -> None:
        """Opens it and keeps it open from now on. Raises where it can not be opened at all."""
        self._make()
        try:
            self._tell()
        except BaseException:
            self.close()
            raise
        name = f"tunnel-{self._host}"
        self._keeper = threading.Thread(target=self._keep, name=name, daemon=True)
        self._keeper.start()

    def close(self) -> None:
        self._closed.set()
        if self._keeper is not None:
            self._keeper.join()
        if self._connection is not None:
            self._connection.close()

    # ---- kept ------------------------------------------------------------------------------------

    def _keep(self) -> None:
        wait = LOOK_SECONDS
        while not self._closed.wait(wait):
            if self.up and self._told == self._port:
                wait = LOOK_SECONDS
                continue
            try:
                if not self.up:
                    self._make()
                self._tell()
                wait = LOOK_SECONDS
            except Exception as error:  # noqa: BLE001 - whatever it was, agents wait for the tunnel
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
                log.warning("the tunnel is down", host=self._host, why=str(error), next_try=wait)

    def _make(self) -> None:
        if self._connection is not None:
            self._connection.close()
        connection = self._connect()
        try:
            self._port = self._forwarded(connection.transport)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _forwarded(self, transport: Transport) -> int:
        """The port; another one where the old is held, as by a connection that is not yet over."""
        why: Exception | None = None
        for port in dict.fromkeys((self._port, 0)):
            try:
                return transport.request_port_forward(LOOPBACK, port, self._accept)
            except Exception as error:  # noqa: BLE001 - the library's own; it is told below
                why = error
        raise TunnelRefused(f"{self._host} forwards no port to here: {why}") from why

    def _tell(self) -> None:
        if self._told != self._port:
            self._moved(self.url)
            self._told = self._port

    # ---- what goes through -----------------------------------------------------------------------

    def _accept(self, channel: Any, _origin: Address, _server: Address) -> None:
        """Called by the connection's own thread, which must not wait."""
        if not self._room.acquire(blocking=False):
            channel.close()
            return
        name = f"tunnelled-{self._host}"
        threading.Thread(target=self._serve, args=(channel,), name=name, daemon=True).start()

    def _serve(self, channel: Any) -> None:
        try:
            here = socket.create_connection(self._target, CONNECT_SECONDS)
        except OSError:  # the control plane is away: for the agent as if it had come itself
            channel.close()
        else:
            here.settimeout(None)
            pump(channel, here)
        finally:
            self._room.release()
