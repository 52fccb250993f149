"""What it costs to look at 100 hosts by SSH: a round of probes, its time and its CPU.

`python -m benchmarks.ssh_probe --json` prints one JSON object on its last line. Each host is an
sshd of this machine on a port of its own, so what the hosts do takes its time from the same cores;
it is counted apart. The provider, its connections and its inventory are the real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.clock import SystemClock
from orchestrator.inventory import Inventory
from orchestrator.providers.bootstrap import Installed
from orchestrator.providers.host_devices import Devices
from orchestrator.providers.inventory import HostLogin
from orchestrator.providers.ssh import SshProvider
from orchestrator.providers.ssh_transport import Connections
from orchestrator.records import HostRequest
from orchestrator.store import tables
from orchestrator.store.engine import open_engine, reading
from orchestrator.store.writer import Writer
from tests.fakes.control_plane import Book, ControlPlane
from tests.fakes.ssh_hosts import LoopbackHost, make_key, write_python

HOSTS, ROUNDS, SINGLES = 100, 30, 100
GANG = 10  # hosts that are entered at once: all of them share the cores of this machine
AT_ONCE = 3  # gangs that are looked at side by side
ALONE = "lh-bench-alone"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Spent:
    """Seconds: by the clock, of this process's CPU, and of the hosts' processes' CPU."""

    wall: float
    cpu: float
    hosts_cpu: float


class Site:
    """`count` hosts in an inventory, each with one place."""

    def __init__(self, root: Path, count: int, stack: ExitStack) -> None:
        key = root / "client_key"
        (root / "keys").write_text(make_key(key) + "\n")
        self._hosts = [LoopbackHost(root / f"h{n}", root / "keys") for n in range(count)]
        for host in self._hosts:
            stack.callback(host.close)
            host.start()
        engine = open_engine(f"sqlite:///{root / 'longhaul.db'}")
        stack.callback(engine.dispose)
        tables.metadata.create_all(engine)
        writer = Writer(engine)
        stack.callback(writer.close)
        inventory = Inventory(reading(engine), writer, SystemClock())
        for number, host in enumerate(self._hosts):
            login = HostLogin(
                user=host.user,
                address=host.address,
                port=host.port,
                host_key=host.host_key,
                key_file=str(key),
            )
            inventory.add(f"h{number}", login, Devices("cpu", 1))
        python, plane = str(write_python(root / "python")), ControlPlane(Book())
        stack.callback(plane.stop)
        self.connections = Connections()
        stack.callback(self.connections.close)
        self.provider = SshProvider(
            inventory,
            self.connections,
            lambda shell, host: Installed(python, str(root / "there" / host.name)),
            plane.url,
        )

    def spent(self, call: Callable[[], object]) -> Spent:
        hosts, cpu, wall = self._hosts_cpu(), time.process_time(), time.perf_counter()
        call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Spent(wall, cpu, self._hosts_cpu() - hosts)

    def _hosts_cpu(self) -> float:
        """Of every process that came from one of the sshd, those that ended included."""
        roots = {host.process.pid for host in self._hosts if host.process is not None}
        parents, ticks = _processes()
        return sum(ticks[pid] for pid in ticks if _comes_from(pid, parents, roots)) / TICKS


def _processes() -> tuple[dict[int, int], dict[int, int]]:
    """Parents and CPU ticks, those of waited-for children included, by pid."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    return parents, ticks


def _comes_from(pid: int, parents: dict[int, int], roots: set[int]) -> bool:
    while pid > 1 and pid not in roots:
        pid = parents.get(pid, 0)
    return pid in roots


def measured(count: int, rounds: int, singles: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lh-ssh-") as folder, ExitStack() as stack:
        _say(f"starting {count} sshd")
        site = Site(Path(folder), count + 1, stack)
        provider = site.provider
        provider.acquire(ALONE, HostRequest(1, 1))
        sizes = {f"lh-bench-{n}": min(GANG, count - n) for n in range(0, count, GANG)}
        threads = stack.enter_context(ThreadPoolExecutor(AT_ONCE))

        def enter() -> None:
            for group, size in sizes.items():
                provider.acquire(group, HostRequest(size, 1))

        def look() -> int:
            """How many hosts it could tell of."""
            probes = list(threads.map(provider.probe, sizes))
            return sum(host.agent_alive is not None for one in probes for host in one.hosts)

        _say(f"entering all of them, {GANG} at once, and making their folders")
        made = site.spent(enter)
        first = site.spent(look)
        _say(f"{rounds} rounds of probes over {count} hosts")
        looks = [site.spent(look) for _ in range(rounds)]
        _say(f"{singles} probes of one host")
        alone = [site.spent(lambda: provider.probe(ALONE)) for _ in range(singles)]
        answered = look()
        gone = site.spent(lambda: list(map(provider.release, sizes)))
        provider.release(ALONE)
    return {
        "hosts": count,
        "answered": answered,
        "acquire_s": round(made.wall, 3),
        "acquire_cpu_s": round(made.cpu, 3),
        "first_round_s": round(first.wall, 3),
        "round_s": _median(look.wall for look in looks),
        "round_most_s": round(max(look.wall for look in looks), 4),
        "round_cpu_s": _median(look.cpu for look in looks),
        "round_hosts_cpu_s": round(sum(look.hosts_cpu for look in looks) / rounds, 4),
        "one_host_s": _median(look.wall for look in alone),
        "one_host_cpu_s": _median(look.cpu for look in alone),
        "release_s": round(gone.wall, 3),
        "rounds": rounds,
        "cores": os.cpu_count(),
    }


def _median(values: Any) -> float:
    return round(statistics.median(list(values)), 4)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.ssh_probe", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--hosts", type=int, default=HOSTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--singles", type=int, default=SINGLES, help="probes of one host")
    given = parser.parse_args(arguments)
    found = measured(given.hosts, given.rounds, given.singles)
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:20} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
