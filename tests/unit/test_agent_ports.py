"""Where an agent lets trainers meet: any free port, or one of the range that it was told."""

from __future__ import annotations

import socket

from worker.host import allowed_ports, free_port
from worker.protocol.hosts import COORDINATOR_PORTS


def test_the_range_comes_from_the_environment():
    assert allowed_ports({COORDINATOR_PORTS: "20000-20002"}) == range(20000, 20003)
    for odd in ("", "20000", "20000-", "a-b"):
        assert not allowed_ports({COORDINATOR_PORTS: odd})
    assert not allowed_ports({})


def test_a_port_of_the_range_is_taken_while_one_is_free():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        within = range(port, port + 40)  # another program may have some of them
        found = {free_port("127.0.0.1", within) for _ in range(20)}
        assert port not in found
        assert found <= set(within)
        assert free_port("127.0.0.1", range(port, port + 1)) != port, "any port is better than none"
