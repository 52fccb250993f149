"""How many active runs one control plane carries: from a trainer's exit to the decision about it.

`python -m benchmarks.fleet --json` prints one JSON object on its last line. The server is the real
process; simulated agents in another process report over HTTP at the intervals of real ones. First
nothing but that happens, then two trainers a second are killed. The server's CPU and memory are the
process's own, from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import databases, serving
from benchmarks.databases import POSTGRESQL, SQLITE, free_port
from benchmarks.fleet_agents import Agent, Count
from benchmarks.seeds import Host, seed_hosts
from orchestrator.probing import PROBES_PER_SECOND
from orchestrator.store.engine import open_engine
from orchestrator.store.migrate import upgrade

SIZES = (100, 1_000, 10_000)
EXITS_PER_SECOND = 2.0
COMERS_PER_SECOND = 250.0  # agents that report for the first time
SETTLING_SECONDS, SETTLED_SECONDS = 5.0, 60.0
PAGE, TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
LATE_SECONDS = 60.0  # that the decisions about the last exits may take
GROWS = ("p50_ms", "p99_ms", "cpu_share", "memory_mib", "reports_per_s")
GOALS = {1_000: ("cpu_share", 0.10), 10_000: ("p99_ms", 1000.0)}


def percentile_ms(seconds: Sequence[float], share: float) -> float | None:
    found = sorted(seconds)
    return round(found[min(len(found) - 1, int(share * len(found)))] * 1000, 1) if found else None


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / (1 << 20)


def decided(path: Path) -> list[float]:
    """Seconds, in the order of the decisions."""
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Meter:
    """What was used and reported up to one moment, by the server `pid` and by this process."""

    at: float
    cpu: float
    reports: int
    driver: float

    @staticmethod
    def read(pid: int, count: Count) -> Meter:
        return Meter(time.monotonic(), cpu_seconds(pid), count.reports, time.process_time())

    def until(self, then: Meter) -> dict[str, float]:
        """CPU in cores."""
        took = then.at - self.at
        return {
            "cpu_share": round((then.cpu - self.cpu) / took, 4),
            "reports_per_s": round((then.reports - self.reports) / took, 1),
            "driver_cpu_share": round((then.driver - self.driver) / took, 4),
        }


async def drive(
    hosts: list[Host], port: int, pid: int, decisions: Path, idle: float, seconds: float
) -> dict[str, Any]:
    count = Count()
    agents = [Agent(host, port, count) for host in hosts]
    spread = 1.0 + len(hosts) / COMERS_PER_SECOND
    began = Meter.read(pid, count)
    tasks = [asyncio.create_task(agent.live(spread)) for agent in agents]
    try:
        calm = await settled(agents, spread, pid)
        rests = Meter.read(pid, count)
        await asyncio.sleep(idle)
        busy, before = Meter.read(pid, count), len(decided(decisions))
        await crash(agents, seconds)
        ends = Meter.read(pid, count)
        late = time.monotonic() + LATE_SECONDS
        while len(found := decided(decisions)[before:]) < count.exits and time.monotonic() < late:
            await asyncio.sleep(1.0)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "p50_ms": percentile_ms(found, 0.5),
        "p99_ms": percentile_ms(found, 0.99),
        "restart_p50_ms": percentile_ms(count.restarts, 0.5),
        "restart_p99_ms": percentile_ms(count.restarts, 0.99),
        **rests.until(busy),
        "memory_mib": round(memory_mib(pid), 1),
        "events": busy.until(ends),
        "start": {
            "seconds": round(rests.at - began.at, 1),
            "settled": calm,
            **began.until(rests),
        },
        "exits": count.exits,
        "decided": len(found),
        "refused": count.refused,
        "failed": count.failed,
    }


async def settled(agents: list[Agent], spread: float, pid: int) -> bool:
    """Waits until all agents came, and the storm that they make at first gets no smaller.

    The first probe of each host group is news and makes the loop look, so that their first turn is
    waited for too, where it is not too long.
    """
    turn = min(len(agents) / PROBES_PER_SECOND, SETTLED_SECONDS)
    ends = time.monotonic() + turn + 3 * spread + SETTLED_SECONDS
    await asyncio.sleep(spread + turn)
    while not all(agent.paced for agent in agents) and time.monotonic() < ends:
        await asyncio.sleep(1.0)
    before, used = math.inf, cpu_seconds(pid)
    while time.monotonic() < ends:
        await asyncio.sleep(SETTLING_SECONDS)
        now = cpu_seconds(pid)
        if now - used > 0.9 * before:
            return True
        before, used = now - used, now
    return False


async def crash(agents: list[Agent], seconds: float) -> None:
    """Kills a trainer here and there; none twice before all others. Returns when all are told."""
    order = random.sample(agents, len(agents))
    ends, turn = time.monotonic() + seconds, 0
    async with asyncio.TaskGroup() as crashes:
        while time.monotonic() < ends:
            crashes.create_task(order[turn % len(order)].crash())
            turn += 1
            await asyncio.sleep(random.expovariate(EXITS_PER_SECOND))


def measure(size: int, url: str, folder: Path, idle: float, seconds: float) -> dict[str, Any]:
    engine = open_engine(url)
    upgrade(engine)
    hosts = seed_hosts(engine, size)
    engine.dispose()
    port, decisions = free_port(), folder / "decisions"
    env = {
        "LONGHAUL_DATA_DIR": str(folder),
        "LONGHAUL_PORT": str(port),
        "LONGHAUL_DATABASE_URL": url,
        "FLEET_DECISIONS": str(decisions),
    }
    command = [sys.executable, "-m", "benchmarks.fleet_server"]
    ready = f"http://127.0.0.1:{port}/readyz"
    with serving.process(command, folder / "service.log", env, ready):
        pid = json.loads((folder / "service.json").read_text())["pid"]
        return uvloop.run(drive(hosts, port, pid, decisions, idle, seconds))


def reached(sizes: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Whether the goals of the sizes that were measured are met."""
    return {
        f"{size}:{name}<={limit:g}": (value := sizes[str(size)][name]) is not None
        and value <= limit
        for size, (name, limit) in GOALS.items()
        if str(size) in sizes
    }


def growth(sizes: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By how much each size has more than the next smaller one."""
    found: dict[str, dict[str, float]] = {}
    for small, large in pairwise(sorted(map(int, sizes))):
        fewer, more = sizes[str(small)], sizes[str(large)]
        known = [name for name in GROWS if fewer[name] and more[name] is not None]
        ratios = {name: round(more[name] / fewer[name], 2) for name in known}
        found[f"{small} to {large}"] = {"runs": round(large / small, 2), **ratios}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default=",".join(map(str, SIZES)), help="active runs, by commas")
    parser.add_argument("--idle", type=float, default=25.0, help="seconds without any exit")
    parser.add_argument("--seconds", type=float, default=60.0, help="with exits, for each size")
    parser.add_argument("--database", choices=(SQLITE, POSTGRESQL), default=SQLITE)
    parser.add_argument("--json", action="store_true", help="nothing but one line of JSON")
    given = parser.parse_args(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sizes: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        server = None
        if given.database == POSTGRESQL:
            server = stack.enter_context(databases.postgres_server())
        for size in map(int, given.runs.split(",")):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lh-fleet-")))
            url = f"sqlite:///{folder / 'longhaul.db'}"
            if server is not None:
                url = databases.new_database(server, f"fleet{size}")
            sizes[str(size)] = measure(size, url, folder, given.idle, given.seconds)
            if not given.json:
                print(size, sizes[str(size)], flush=True)
    told = {"benchmark": "fleet", "database": given.database, "seconds": given.seconds}
    found = {"runs": sizes, "growth": growth(sizes), "goals": reached(sizes)}
    print(json.dumps(told | found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
