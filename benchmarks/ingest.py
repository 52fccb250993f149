"""How many metric points and heartbeats one control plane takes, beside MLflow's tracking server.

`python -m benchmarks.ingest --json` prints one JSON object on its last line. Both servers get the
same two cores, the same kind of database, the same client, and turns in the same run, each at the
batch size at which it takes most: up to what an agent sends at once, and up to what MLflow takes.
Both are told the same six numbers of each step. A metric point is one named number of one step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import databases, serving
from benchmarks.databases import POSTGRESQL, SQLITE
from benchmarks.load import MakeBody, Round, Spread, Target, press
from benchmarks.peers import python_with
from benchmarks.seeds import SECRET, Host, seed_hosts
from orchestrator.store.engine import open_engine
from orchestrator.store.migrate import upgrade
from worker.uplink import BATCH_EVENTS

CONNECTIONS = 16
SIZES = (50, BATCH_EVENTS)  # steps in a report
METRICS = {
    "loss": "2.1234567890123",
    "grad_norm": "1.0123456789",
    "learning_rate": "0.0003",
    "tokens": "524288",
    "seconds": "0.5123456",
    "data_wait": "0.0012345",
}
MLFLOW_SIZES = (8, 16, 33, 83, 166)  # steps in a call; it takes no more than 1000 metrics
MLFLOW_WORKERS = (1, 2, 4)  # 4 is its own default; all are tried in each run, the best one counts
CORES = 2


class Reports:
    """One agent's reports: its steps and spool numbers rise from call to call."""

    def __init__(self, host: Host) -> None:
        self._step = self._seq = 0
        numbers = ",".join(f'"{name}":{value}' for name, value in METRICS.items())
        self._event = (
            '{"seq":%d,"attempt":1,"rank":0,"at":"2026-01-02T03:04:05.678901Z","mono":12.5,"event":'
            f'{{"kind":"step","step":%d,{numbers},"batch_hash":"0123456789abcdef"}}}}'
        )
        head = f'{{"group":"{host.group}","host":0,"instance":"{host.instance}","events":['
        self._head, self._tail = head, '],"running_attempt":1,"wait_seconds":0}'

    def steps(self, size: int) -> MakeBody:
        template = self._head + ",".join([self._event] * size) + self._tail

        def make() -> bytes:
            numbers: list[int] = []
            for _ in range(size):
                self._seq += 1
                self._step += 1
                numbers += (self._seq, self._step)
            return (template % tuple(numbers)).encode()

        return make

    def heartbeat(self) -> bytes:
        return (self._head + self._tail).encode()


class LogBatches:
    """One MLflow run's calls of `log-batch`: each of `size` steps, a metric for each number."""

    def __init__(self, run_id: str, size: int) -> None:
        self._step, self._size = 0, size
        metric = '{"key":"%s","value":%s,"timestamp":1767323045678,"step":%%d}'
        step = ",".join(metric % one for one in METRICS.items())
        self._template = f'{{"run_id":"{run_id}","metrics":[' + ",".join([step] * size) + "]}"

    def batch(self) -> bytes:
        first = self._step
        self._step += self._size
        steps = (step for step in range(first, self._step) for _ in METRICS)
        return (self._template % tuple(steps)).encode()


@dataclass
class Tally:
    """The rounds of one database; sizes are steps in a call."""

    steps: list[Round] = field(default_factory=list)
    heartbeats: list[Round] = field(default_factory=list)
    mlflow: list[Round] = field(default_factory=list)
    size: int = SIZES[0]
    mlflow_size: int = MLFLOW_SIZES[0]
    mlflow_workers: int | None = None
    why_no_mlflow: str | None = None
    bytes_a_step: float = 0.0

    def summary(self) -> dict[str, Any]:
        ours = Spread.of([one.per_second * self.size for one in self.steps])
        found: dict[str, Any] = {
            "points_per_s": ours.times(len(METRICS)).rounded(),
            "steps_per_s": ours.rounded(),
            "steps_a_report": self.size,
            **_latencies("report", self.steps),
            "heartbeats_per_s": Spread.of([one.per_second for one in self.heartbeats]).rounded(),
            **_latencies("heartbeat", self.heartbeats),
            "refused": sum(one.refused for one in (*self.steps, *self.heartbeats)),
            "bytes_a_step": round(self.bytes_a_step, 1),
            "ratio_vs_mlflow": None,
            "ratio_of_steps": None,
            "why_no_mlflow": self.why_no_mlflow,
        }
        return found | (self._beside_mlflow(ours) if self.mlflow else {})

    def _beside_mlflow(self, ours: Spread) -> dict[str, Any]:
        steps = Spread.of([one.per_second * self.mlflow_size for one in self.mlflow])
        points = steps.times(len(METRICS))
        return {
            "mlflow_points_per_s": points.rounded(),
            "mlflow_metrics_a_call": self.mlflow_size * len(METRICS),
            "mlflow_workers": self.mlflow_workers,
            **_latencies("mlflow", self.mlflow),
            "mlflow_refused": sum(one.refused for one in self.mlflow),
            "ratio_vs_mlflow": round(ours.median / steps.median, 2),
            "ratio_of_steps": round(ours.median / points.median, 2),
        }


def _latencies(name: str, rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    return {
        f"{name}_p{percent}_ms": Spread.of(
            [one.percentile(percent / 100) for one in rounds]
        ).rounded(2)
        for percent in (50, 99)
    }


class Mlflow:
    """A running tracking server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.runs = [self._new_run() for _ in range(CONNECTIONS)]

    def _new_run(self) -> str:
        body = {"experiment_id": "0", "start_time": 1}
        call = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/2.0/mlflow/runs/create",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=30) as answer:  # noqa: S310
            return str(json.load(answer)["run"]["info"]["run_id"])

    def round(self, seconds: float, size: int) -> Round:
        target = Target(self.port, "/api/2.0/mlflow/runs/log-batch")
        batches = [LogBatches(run, size) for run in self.runs]
        return _press(target, [one.batch for one in batches], seconds)


def steps_by_size(sizes: Sequence[int], a_round: Callable[[int], Round]) -> dict[int, float]:
    """Steps a second by how many are in a call."""
    return {size: round(a_round(size).per_second * size) for size in sizes}


def best(found: dict[int, float]) -> int:
    return max(found, key=lambda size: found[size])


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _mlflow(
    args: argparse.Namespace, folder: Path, url: str, tally: Tally
) -> Iterator[Mlflow | None]:
    """At the number of workers and the batch size at which it takes most; `tally` learns both."""
    if args.no_mlflow:
        tally.why_no_mlflow = "left out with --no-mlflow"
        yield None
        return
    try:
        python = args.mlflow_python or python_with("mlflow", ["mlflow", "psycopg2-binary"])
    except (OSError, subprocess.SubprocessError) as error:
        tally.why_no_mlflow = f"MLflow could not be installed: {error}"
        yield None
        return
    tried: dict[int, dict[int, float]] = {}
    for workers in args.mlflow_workers:
        with serving.mlflow(python, folder, url, workers) as port:
            server = Mlflow(port)
            tried[workers] = steps_by_size(
                args.mlflow_sizes, lambda size, server=server: server.round(args.seconds, size)
            )
        note(f"MLflow with {workers} workers, steps/s by steps a call: {tried[workers]}")
    tally.mlflow_workers = best({n: max(found.values()) for n, found in tried.items()})
    tally.mlflow_size = best(tried[tally.mlflow_workers])
    with serving.mlflow(python, folder, url, tally.mlflow_workers) as port:
        yield Mlflow(port)


def measure(kind: str, args: argparse.Namespace, server: str | None, folder: Path) -> Tally:
    tally = Tally()
    ours, theirs = _urls(server, folder)
    engine = open_engine(ours)
    upgrade(engine)
    hosts = seed_hosts(engine, CONNECTIONS)
    engine.dispose()
    before = databases.size_of(ours, "metric_points")
    with (
        _mlflow(args, folder / "mlflow", theirs, tally) as other,
        serving.longhaul(folder, ours) as port,
    ):
        target = Target(port, "/api/v1/agents/report", f"Authorization: Bearer {SECRET}\r\n")
        agents = [Reports(host) for host in hosts]

        def steps(size: int) -> Round:
            return _press(target, [agent.steps(size) for agent in agents], args.seconds)

        found = steps_by_size(SIZES, steps)
        note(f"Longhaul, steps/s by steps a report: {found}")
        tally.size = best(found)
        for number in range(args.rounds):
            tally.steps.append(steps(tally.size))
            if other is not None:
                tally.mlflow.append(other.round(args.seconds, tally.mlflow_size))
            beats = [agent.heartbeat for agent in agents]
            tally.heartbeats.append(_press(target, beats, args.seconds / 2))
            note(f"{kind}: round {number + 1} of {args.rounds}")
    tally.bytes_a_step = _bytes_a_step(ours, before)
    return tally


def _press(target: Target, bodies: list[MakeBody], seconds: float) -> Round:
    return uvloop.run(press(target, bodies, seconds))


def _urls(server: str | None, folder: Path) -> tuple[str, str]:
    """Longhaul's database, and MLflow's in its own driver's spelling."""
    if server is None:
        (folder / "mlflow").mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'longhaul.db'}", f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"
    theirs = databases.new_database(server, "mlflow").replace("+psycopg", "+psycopg2")
    return databases.new_database(server, "longhaul"), theirs


def _bytes_a_step(url: str, before: int) -> float:
    from sqlalchemy import func, select

    from orchestrator.store.tables import metric_points

    engine = open_engine(url)
    with engine.connect() as connection:
        count = connection.execute(select(func.count()).select_from(metric_points)).scalar_one()
    engine.dispose()
    return (databases.size_of(url, "metric_points") - before) / max(1, count)


def report(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The top-level numbers are those of SQLite, the default; the ratios are the lowest of all."""
    first = next(iter(found.values()))
    return {
        "points_per_s": first["points_per_s"]["median"],
        "steps_per_s": first["steps_per_s"]["median"],
        "heartbeats_per_s": first["heartbeats_per_s"]["median"],
        "p99_ms": first["report_p99_ms"]["median"],
        "ratio_vs_mlflow": _lowest(found, "ratio_vs_mlflow"),
        "ratio_of_steps": _lowest(found, "ratio_of_steps"),
        "cores": len(os.sched_getaffinity(0)),
        "connections": CONNECTIONS,
        "steps_a_report": first["steps_a_report"],
        "points_a_step": len(METRICS),
        "databases": found,
    }


def _lowest(found: dict[str, dict[str, Any]], name: str) -> float | None:
    """None where one database has none."""
    values = [one[name] for one in found.values()]
    return None if None in values else min(values)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the numbers as JSON, on one line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one round of steps")
    parser.add_argument("--database", choices=(SQLITE, POSTGRESQL), action="append")
    parser.add_argument("--no-mlflow", action="store_true")
    parser.add_argument("--mlflow-python", type=Path, help="a Python that has MLflow")
    parser.add_argument("--mlflow-workers", type=int, nargs="+", default=MLFLOW_WORKERS)
    parser.add_argument(
        "--mlflow-sizes", type=int, nargs="+", default=MLFLOW_SIZES, help="steps in a call"
    )
    parser.add_argument("--quick", action="store_true", help="only to see that all of it runs")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 1.0
        args.mlflow_workers, args.mlflow_sizes = MLFLOW_WORKERS[1:2], MLFLOW_SIZES[-1:]
    return args


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end, too
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    wanted = args.database or [SQLITE, POSTGRESQL]
    found: dict[str, dict[str, Any]] = {}
    for kind in wanted:
        if kind == POSTGRESQL and databases.postgres_binaries() is None:
            note("PostgreSQL's server program is not installed: left out")
            continue
        server = databases.postgres_server() if kind == POSTGRESQL else nullcontext(None)
        with server as url, tempfile.TemporaryDirectory(prefix="longhaul-bench-") as folder:
            found[kind] = measure(kind, args, url, Path(folder)).summary()
    result = report(found)
    print(json.dumps(result) if args.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
