"""Connections to hosts by SSH: pinned keys, and sockets that notice a cut.

A connection is shared by all who talk to a host, made again where it was lost, and not tried again
at once where it failed.
"""

from __future__ import annotations

import base64
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import paramiko

from orchestrator.providers.base import ProviderError
from orchestrator.providers.inventory import fingerprint
from orchestrator.providers.ssh_shell import LOGIN_SECONDS, HostUnreachable, SshShell, words_of

CONNECT_SECONDS = 5.0
UNANSWERED_MS = (
    8000  # so long may bytes stay unacknowledged; a keep-alive had not noticed after 60 s
)
KEEP_ALIVE_SECONDS = 5
AGAIN_SECONDS = 2.0
# What it would log is raised here too, and told once.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class LoginRefused(ProviderError):
    """The host answers and does not let Longhaul in."""

    hint = "Log in by hand as the service's user: ssh USER@ADDRESS."


class HostKeyDiffers(ProviderError):
    """The host shows another key than the one that was pinned for it."""

    hint = (
        "Either it was installed anew, or somebody stands in between. If you know why, remove the"
        " host and add it with its new key."
    )


class BadHostKey(ProviderError):
    """What is written down as a host's key is none."""

    retryable = False
    hint = "It stands in /etc/ssh/ssh_host_ed25519_key.pub on the host: its first two words."


@dataclass(frozen=True)
class Login:
    """How one host is entered. `host_key` is its pinned public key, like `ssh-ed25519 AAAA…`.

    `key_file` is None where an SSH agent or the user's own default keys are to be used.
    """

    user: str
    address: str
    host_key: str
    port: int = 22
    key_file: str | None = None
    jump: Login | None = None

    @property
    def where(self) -> str:
        return f"{self.user}@{self.address}" + ("" if self.port == 22 else f":{self.port}")


def parsed_key(text: str) -> paramiko.PKey:
    """Raises `BadHostKey` for what is no public key."""
    kind, _, data = text.partition(" ")
    try:
        return paramiko.PKey.from_type_string(kind, base64.b64decode(data, validate=True))
    except Exception as error:  # paramiko raises whatever its parser meets
        raise BadHostKey(f"{text[:30]}… is no public key: {words_of(error)}") from error


def shown_key(address: str, port: int, through: paramiko.Transport | None = None) -> str:
    """The key that the host shows now, which nobody vouches for. Raises `HostUnreachable`."""
    sock = _socket(address, port) if through is None else _channel(through, address, port)
    transport = paramiko.Transport(sock)
    try:
        transport.start_client(timeout=LOGIN_SECONDS)
        key = transport.get_remote_server_key()
        return f"{key.get_name()} {key.get_base64()}"
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise HostUnreachable(f"{address}:{port} speaks no SSH: {words_of(error)}") from error
    finally:
        transport.close()


def connect(login: Login) -> SshShell:
    """Raises `HostUnreachable`, `LoginRefused` or `HostKeyDiffers`, in words that name the host."""
    through = None if login.jump is None else connect(login.jump)
    try:
        return _connect(login, through)
    except BaseException:
        if through is not None:
            through.close()
        raise


def _connect(login: Login, through: SshShell | None) -> SshShell:
    key = parsed_key(login.host_key)
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = login.address if login.port == 22 else f"[{login.address}]:{login.port}"
    client.get_host_keys().add(name, key.get_name(), key)
    try:
        if through is None:
            sock: socket.socket | paramiko.Channel = _socket(login.address, login.port)
        else:
            sock = _channel(through.transport, login.address, login.port)
        client.connect(
            login.address,
            port=login.port,
            username=login.user,
            key_filename=login.key_file,
            sock=sock,
            timeout=CONNECT_SECONDS,
            banner_timeout=LOGIN_SECONDS,
            auth_timeout=LOGIN_SECONDS,
            channel_timeout=LOGIN_SECONDS,
            allow_agent=login.key_file is None,
            look_for_keys=login.key_file is None,
        )
    except Exception as error:
        client.close()
        raise _inwords_of(login, error) from error
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(KEEP_ALIVE_SECONDS)
    return SshShell(client, through, login.where)


def _inwords_of(login: Login, error: Exception) -> ProviderError:
    where = login.where
    match error:
        case ProviderError():
            return error
        case paramiko.BadHostKeyException():
            shown = f"{error.key.get_name()} {error.key.get_base64()}"
            return HostKeyDiffers(
                f"{where} shows another host key than the one that was pinned: it is"
                f" {fingerprint(shown)}, and {fingerprint(login.host_key)} was expected"
            )
        case paramiko.PasswordRequiredException():
            return LoginRefused(
                f"the private key {login.key_file} for {where} is locked by a passphrase; load it"
                " into an SSH agent, or use a key without one"
            )
        case paramiko.AuthenticationException():
            whose = login.key_file or "any key of the SSH agent or of ~/.ssh"
            return LoginRefused(f"{where} does not let user {login.user} in with {whose}")
        case FileNotFoundError() | PermissionError():
            return LoginRefused(
                f"the private key {login.key_file} can not be read: {words_of(error)}"
            )
        case paramiko.SSHException() if "not found in known_hosts" in str(error):
            return HostKeyDiffers(f"{where} shows a host key of another type than the pinned one")
        case _:
            return HostUnreachable(f"{where} does not answer: {words_of(error)}")


def _socket(address: str, port: int) -> socket.socket:
    try:
        sock = socket.create_connection((address, port), CONNECT_SECONDS)
    except OSError as error:
        raise HostUnreachable(f"{address}:{port} does not answer: {words_of(error)}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MS)
    return sock


def _channel(through: paramiko.Transport, address: str, port: int) -> paramiko.Channel:
    try:
        return through.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=5)
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise HostUnreachable(
            f"the jump host can not reach {address}:{port}: {words_of(error)}"
        ) from error


class Connections:
    """One connection for each login, made when it is needed.

    One that failed is not tried again within `AGAIN_SECONDS`: who asks is told the same at once.
    """

    def __init__(self, open_one: Callable[[Login], SshShell] = connect) -> None:
        self._open = open_one
        self._lock = threading.Lock()
        self._locks: dict[Login, threading.Lock] = {}
        self._shells: dict[Login, SshShell] = {}
        self._failed: dict[Login, tuple[float, ProviderError]] = {}

    def shell(self, login: Login, *, at_once: bool = False) -> SshShell:
        """`at_once` tries in any case. Raises what `connect` does."""
        with self._lock:
            lock = self._locks.setdefault(login, threading.Lock())
        with lock:
            shell = self._shells.get(login)
            if shell is not None and shell.alive:
                return shell
            if shell is not None:
                del self._shells[login]
                shell.close()
            failed = self._failed.get(login)
            if failed is not None and not at_once and time.monotonic() < failed[0]:
                raise type(failed[1])(str(failed[1]))
            try:
                made = self._open(login)
            except ProviderError as error:
                self._failed[login] = (time.monotonic() + AGAIN_SECONDS, error)
                raise
            self._failed.pop(login, None)
            self._shells[login] = made
            return made

    def fresh(self, login: Login) -> SshShell:
        """One that the caller has alone, and closes. Raises what `connect` does."""
        return self._open(login)

    def close(self) -> None:
        with self._lock:
            shells = list(self._shells.values())
            self._shells.clear()
        for shell in shells:
            shell.close()
