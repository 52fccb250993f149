"""How many active runs one control plane carries: from a trainer's exit to the decision about it.

`python -m benchmarks.fleet --json` prints one JSON object on its last line. The server is the real
process; simulated agents in another process report over HTTP at the intervals of real ones. Two
trainers a second are killed. The server's CPU and memory are the process's own, from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import databases, serving
from benchmarks.databases import POSTGRESQL, SQLITE, free_port
from benchmarks.fleet_agents import Agent, Count
from benchmarks.seeds import Host, seed_hosts
from orchestrator.store.engine import open_engine
from orchestrator.store.migrate import upgrade

SIZES = (100, 1_000, 10_000)
EXITS_PER_SECOND = 2.0
LOOKS_PER_SECOND = 150.0  # at least: a new leader looks at every run before the measurement
PAGE, TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
GOALS = {1_000: ("cpu_share", 0.10), 10_000: ("p99_ms", 1000.0)}


def percentile(values: Sequence[float], share: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / (1 << 20)


def decided(path: Path) -> list[float]:
    """Seconds, in the order of the decisions."""
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


async def drive(
    hosts: list[Host], port: int, pid: int, decisions: Path, seconds: float
) -> dict[str, Any]:
    count = Count()
    agents = [Agent(host, port, count) for host in hosts]
    spread = 5.0 + len(hosts) / LOOKS_PER_SECOND
    tasks = [asyncio.create_task(agent.live(spread)) for agent in agents]
    try:
        await settled(agents, spread)
        before, cpu, began = len(decided(decisions)), cpu_seconds(pid), time.monotonic()
        reports, own = count.reports, time.process_time()
        await crash(agents, seconds)
        took = time.monotonic() - began
        used, reported = cpu_seconds(pid) - cpu, count.reports - reports
        driver = time.process_time() - own
        await asyncio.sleep(5.0)
        found = decided(decisions)[before:]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "p50_ms": round(percentile(found, 0.5) * 1000, 1),
        "p99_ms": round(percentile(found, 0.99) * 1000, 1),
        "restart_p50_ms": round(percentile(count.restarts, 0.5) * 1000, 1),
        "restart_p99_ms": round(percentile(count.restarts, 0.99) * 1000, 1),
        "cpu_share": round(used / took, 4),
        "memory_mib": round(memory_mib(pid), 1),
        "reports_per_s": round(reported / took, 1),
        "exits": count.exits,
        "decided": len(found),
        "refused": count.refused,
        "failed": count.failed,
        "driver_cpu_share": round(driver / took, 4),
    }


async def settled(agents: list[Agent], spread: float) -> None:
    """Until all agents came and the storm that they make at first is over."""
    ends = time.monotonic() + 20 * spread
    await asyncio.sleep(1.5 * spread)
    while not all(agent.paced for agent in agents) and time.monotonic() < ends:
        await asyncio.sleep(1.0)
    await asyncio.sleep(spread)


async def crash(agents: list[Agent], seconds: float) -> None:
    """Kills a trainer here and there; none twice before all others."""
    order = random.sample(agents, len(agents))
    ends, turn = time.monotonic() + seconds, 0
    crashes: set[asyncio.Task[None]] = set()
    while time.monotonic() < ends:
        task = asyncio.create_task(order[turn % len(order)].crash())
        crashes.add(task)
        task.add_done_callback(crashes.discard)
        turn += 1
        await asyncio.sleep(random.expovariate(EXITS_PER_SECOND))


def measure(size: int, url: str, folder: Path, seconds: float) -> dict[str, Any]:
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
        return uvloop.run(drive(hosts, port, pid, decisions, seconds))


def reached(sizes: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Whether the goals of the sizes that were measured are met."""
    return {
        f"{size}:{name}<={limit:g}": sizes[str(size)][name] <= limit
        for size, (name, limit) in GOALS.items()
        if str(size) in sizes
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default=",".join(map(str, SIZES)), help="active runs, by commas")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measurement for each size")
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
            sizes[str(size)] = measure(size, url, folder, given.seconds)
            if not given.json:
                print(size, sizes[str(size)], flush=True)
    told = {"benchmark": "fleet", "database": given.database, "seconds": given.seconds}
    print(json.dumps(told | {"runs": sizes, "goals": reached(sizes)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
