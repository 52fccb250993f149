"""Tunnels over a real sshd: they carry, they come back, and they say why not."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.providers.tunnel import Address, Tunnel, TunnelRefused
from orchestrator.providers.tunnels import Tunnels
from tests.fakes.loopback_sshd import Client, Sshd, running

pytestmark = pytest.mark.sshd
LARGE = 3_000_000


class Upper(socketserver.StreamRequestHandler):
    """Answers everything that it was sent in capitals, once the other end has sent it all."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def target() -> Iterator[Address]:
    with Server(("127.0.0.1", 0), Upper) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield ("127.0.0.1", server.server_address[1])
        server.shutdown()
        thread.join()


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with running(tmp_path / "sshd") as server:
        yield server


@pytest.fixture
def moved() -> list[str]:
    return []


@pytest.fixture
def tunnel(sshd: Sshd, target: Address, moved: list[str]) -> Iterator[Tunnel]:
    made = Tunnel("gpu-1", sshd.connect, target, moved.append)
    made.open()
    yield made
    made.close()


def said(port: int, words: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as end:
        end.settimeout(20)
        end.sendall(words)
        end.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while part := end.recv(1 << 16):
            answer += part
    return bytes(answer)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def carries(port: int) -> bool:
    try:
        return said(port, b"hello") == b"HELLO"
    except OSError:
        return False


def held(port: int) -> socket.socket:
    """Takes a port as soon as the killed sshd has let go of it."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_bytes_go_through_both_ways(tunnel: Tunnel, moved: list[str]):
    assert moved == [f"http://127.0.0.1:{tunnel.port}"] == [tunnel.url]
    assert said(tunnel.port, b"hello") == b"HELLO"
    large = b"abcdefgh" * (LARGE // 8)
    assert said(tunnel.port, large) == large.upper()


def test_many_at_once(tunnel: Tunnel):
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(said(tunnel.port, b"x%d" % n)))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(b"X%d" % n for n in range(20))


def test_a_broken_connection_comes_back_at_the_same_port(
    tunnel: Tunnel, sshd: Sshd, moved: list[str]
):
    port = tunnel.port
    sshd.cut()
    until(lambda: not tunnel.up)
    until(lambda: tunnel.up and carries(port))
    assert tunnel.port == port
    assert len(moved) == 1


def test_where_the_port_is_held_another_is_told(tunnel: Tunnel, sshd: Sshd, moved: list[str]):
    """As by the old connection's end over there, which has not yet noticed the cut."""
    old = tunnel.port
    sshd.stop()
    with held(old):
        sshd.start()
        until(lambda: len(moved) == 2)
        assert tunnel.port != old
        assert moved[1] == f"http://127.0.0.1:{tunnel.port}"
        assert carries(tunnel.port)


def test_an_sshd_that_is_away_for_a_while(tunnel: Tunnel, sshd: Sshd):
    port = tunnel.port
    sshd.stop()
    until(lambda: not tunnel.up)
    assert not carries(port)
    sshd.start()
    until(lambda: carries(tunnel.port))


def test_agents_that_could_not_be_told_are_told_again(sshd: Sshd, target: Address):
    told: list[str] = []

    def fails_once(url: str) -> None:
        told.append(url)
        if len(told) == 2:
            raise OSError("the host did not answer")

    tunnel = Tunnel("gpu-1", sshd.connect, target, fails_once)
    tunnel.open()
    old = tunnel.port
    sshd.stop()
    with held(old):
        sshd.start()
        until(lambda: len(told) == 3)
    assert told[1] == told[2] == tunnel.url
    tunnel.close()


def test_a_control_plane_that_is_away_reads_as_a_closed_connection(sshd: Sshd):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        tunnel = Tunnel("gpu-1", sshd.connect, nobody.getsockname(), lambda _: None)
        tunnel.open()
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(tunnel.url, timeout=10)
        assert tunnel.up
        tunnel.close()


def test_the_port_from_before_a_restart_is_asked_for(sshd: Sshd, target: Address):
    first = Tunnel("gpu-1", sshd.connect, target, lambda _: None)
    first.open()
    first.close()
    until(lambda: not sshd.sessions())
    again = Tunnel("gpu-1", sshd.connect, target, lambda _: None, first.port)
    again.open()
    assert again.port == first.port
    again.close()


def test_an_sshd_that_forwards_nothing_is_told(tmp_path: Path, target: Address):
    with running(tmp_path / "strict", "AllowTcpForwarding no") as strict:
        tunnel = Tunnel("gpu-1", strict.connect, target, lambda _: None)
        with pytest.raises(TunnelRefused, match="gpu-1 forwards no port to here") as refused:
            tunnel.open()
        assert "AllowTcpForwarding" in refused.value.hint
        until(lambda: not strict.sessions())


def test_a_host_has_one_tunnel_whoever_asks(sshd: Sshd, target: Address):
    moved: list[tuple[str, str]] = []
    made: list[Client] = []

    def connect(host: str) -> Client:
        assert host == "gpu-1"
        made.append(sshd.connect())
        return made[-1]

    tunnels = Tunnels(connect, target, lambda host, url: moved.append((host, url)))
    asking = [threading.Thread(target=tunnels.url, args=("gpu-1",)) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert moved == [("gpu-1", tunnels.url("gpu-1"))]
    assert len(made) == 1
    tunnels.close()
    assert not made[0].alive
