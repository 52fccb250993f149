"""Carries bytes both ways between an SSH channel and a socket, each end closed for itself.

Imports nothing of Longhaul.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Protocol

PART = 1 << 16


class Channel(Protocol):
    """paramiko's. Nothing more comes once `recv` answers b""."""

    def recv(self, nbytes: int) -> bytes: ...

    def sendall(self, s: bytes) -> None: ...

    def shutdown_write(self) -> None: ...

    def close(self) -> None: ...


def pump(channel: Channel, here: socket.socket) -> None:
    """Returns once both directions are over, and closes both ends."""

    def out() -> None:
        _copy(here.recv, channel.sendall, channel.shutdown_write)

    try:
        other = threading.Thread(target=out, name="tunnelled-back", daemon=True)
        other.start()
        _copy(channel.recv, here.sendall, lambda: here.shutdown(socket.SHUT_WR))
        other.join()
    finally:
        channel.close()
        here.close()


def _copy(
    read: Callable[[int], bytes], write: Callable[[bytes], None], end: Callable[[], None]
) -> None:
    """A broken end reads as one that is over; the other side must learn of it as well."""
    with contextlib.suppress(OSError, EOFError):
        while part := read(PART):
            write(part)
    with contextlib.suppress(OSError, EOFError):
        end()
