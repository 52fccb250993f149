"""Hosts to be entered by SSH: real sshd, on a loopback port, or in namespaces of its own.

A `NetworkedHost` has a network, processes, mounts, a name and a home of its own, so that it can
crash or be cut off as a whole: root alone can make one. A `LoopbackHost` shares all of that with
this machine.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
READY_SECONDS = 20.0
CONFIGURATION = """\
ListenAddress {address}:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {keys}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
AllowTcpForwarding yes
MaxStartups 100
MaxSessions 50
Subsystem sftp internal-sftp
"""


def make_key(path: Path) -> str:
    """A pair of keys; answers the public one."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True
    )
    return path.with_name(path.name + ".pub").read_text().rsplit(" ", 1)[0].strip()


def write_python(path: Path, python: str = sys.executable, **env: str) -> Path:
    """`python` with this tree, as bootstrap would have made one on a host."""
    exports = "".join(f"export {name}='{value}'\n" for name, value in env.items())
    path.write_text(f'#!/bin/sh\nexport PYTHONPATH={ROOT}\n{exports}exec {python} "$@"\n')
    path.chmod(0o755)
    return path


@dataclass
class LoopbackHost:
    """One sshd on this machine. `keys` is the file with the public keys that it lets in."""

    folder: Path
    keys: Path
    address: str = "127.0.0.1"
    port: int = 0
    user: str = field(default_factory=getpass.getuser)
    host_key: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.host_key:
            self.host_key = make_key(self.folder / "host_key")
        if not self.port:
            with socket.socket() as free:
                free.bind((self.address, 0))
                self.port = free.getsockname()[1]
        written = CONFIGURATION.format(
            address=self.address, port=self.port, folder=self.folder, keys=self.keys
        )
        (self.folder / "sshd.conf").write_text(written)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._until_ready()

    def _argv(self) -> Sequence[str]:
        return (SSHD, "-D", "-e", "-f", str(self.folder / "sshd.conf"))

    def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            assert self.process is not None
            said = (self.folder / "sshd.log").read_text()
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, f"sshd is not ready: {said}"
            time.sleep(0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self._at, 1.0) as sock:
            return sock.recv(4) == b"SSH-"
        return False

    @property
    def _at(self) -> tuple[str, int]:
        return self.address, self.port

    def crash(self) -> None:
        """sshd ends; what it started on a loopback host lives on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.crash()


@dataclass
class NetworkedHost(LoopbackHost):
    """A machine of its own: `crash` ends every process on it, `cut` takes its link away.

    It sees this machine's files, but for its home. `names` is its file of host names.
    """

    space: str = ""
    link: str = ""
    names: Path = Path("/etc/hosts")

    def _argv(self) -> Sequence[str]:
        home, users = self.folder / "home", self.folder / "passwd"
        home.mkdir(mode=0o700, exist_ok=True)
        users.write_text(
            f"root:x:0:0:root:{home}:/bin/sh\nsshd:x:105:65534::/run/sshd:/bin/false\n"
        )
        inside = (
            f"hostname {self.name} && mount --bind {users} /etc/passwd"
            f" && mount --bind {self.names} /etc/hosts"
            f" && exec {SSHD} -D -e -f {self.folder / 'sshd.conf'}"
        )
        apart = ("--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc")
        return ("ip", "netns", "exec", self.space, "unshare", *apart, "sh", "-c", inside)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def crash(self) -> None:
        """`ip netns exec` has become `unshare`, whose end takes every process along."""
        super().crash()

    def cut(self) -> None:
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        _ip("link", "set", self.link, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def loopback_host(folder: Path) -> Iterator[tuple[LoopbackHost, Path]]:
    """One host, and the private key that it lets in."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "client_key"
    (folder / "keys").write_text(make_key(key) + "\n")
    host = LoopbackHost(folder / "sshd", folder / "keys")
    try:
        host.start()
        yield host, key
    finally:
        host.close()


@dataclass
class Network:
    """A switch that this machine is on too, at `address`, and the hosts on it."""

    folder: Path
    address: str
    key: Path
    hosts: dict[str, NetworkedHost]


@contextlib.contextmanager
def network(folder: Path, names: Sequence[str], port: int = 22) -> Iterator[Network]:
    """Hosts of these names, which know one another by name. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "client_key"
    (folder / "keys").write_text(make_key(key) + "\n")
    tag = secrets.token_hex(3)
    bridge, net = f"lhs{tag}", _free_net()
    hosts: dict[str, NetworkedHost] = {}
    with contextlib.ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "delete", bridge)
        _ip("addr", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        known = [f"{net}.{number} {name}" for number, name in enumerate(names, 2)]
        (folder / "names").write_text("\n".join(("127.0.0.1 localhost", *known)) + "\n")
        for number, name in enumerate(names, 2):
            space, link = f"lhs-{tag}-{number}", f"lhs{tag}v{number}"
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "delete", space)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", link, "master", bridge)
            _ip("link", "set", link, "up")
            _ip("-n", space, "addr", "add", f"{net}.{number}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "eth0", "up")
            host = NetworkedHost(
                folder / name,
                folder / "keys",
                address=f"{net}.{number}",
                port=port,
                user="root",
                space=space,
                link=link,
                names=folder / "names",
            )
            hosts[name] = host
            stack.callback(host.close)
            host.start()
        yield Network(folder, f"{net}.1", key, hosts)


def _free_net() -> str:
    taken = subprocess.run(["ip", "-o", "-4", "addr"], check=True, capture_output=True).stdout
    for third in itertools.count(secrets.randbelow(200)):
        net = f"10.213.{third % 250}"
        if f" {net}.".encode() not in taken:
            return net
    raise AssertionError
