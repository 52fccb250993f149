"""How many metric points and heartbeats one control plane takes, beside MLflow's tracking server.

`python -m benchmarks.ingest --json` prints one JSON object on its last line. Both servers get the
same two cores, the same kind of database, the same client, and turns in the same run, each at the
batch size at which it takes most: up to what an agent sends at once, and up to what MLflow takes.
A point of Longhaul is one step with all its values; one of MLflow is one value of one step.
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
from benchmarks.seeds import SECRET, Host, seed_hosts
from orchestrator.store.engine import open_engine
from orchestrator.store.migrate import upgrade
from worker.uplink import BATCH_EVENTS

CONNECTIONS = 16
SIZES = (50, BATCH_EVENTS)
VALUES_A_POINT = 6  # loss, gradient norm, learning rate, tokens, seconds, wait for data
MLFLOW_SIZES = (50, 100, 200, 500, 1000)
MLFLOW_WORKERS = (1, 2, 4)  # 4 is its own default; all are tried in each run, the best one counts
MLFLOW_FOLDER = serving.ROOT / "build" / "mlflow"
CORES = 2


class Reports:
    """One agent's reports: its steps and spool numbers rise from call to call."""

    def __init__(self, host: Host) -> None:
        self._step = self._seq = 0
        self._event = (
            '{"seq":%d,"attempt":1,"rank":0,"at":"2026-01-02T03:04:05.678901Z","mono":12.5,"event":'
            '{"kind":"step","step":%d,"loss":2.1234567890123,"grad_norm":1.0123456789,'
            '"learning_rate":0.0003,"tokens":524288,"seconds":0.5123456,"data_wait":0.0012345,'
            '"batch_hash":"0123456789abcdef"}}'
        )
        head = f'{{"group":"{host.group}","host":0,"instance":"{host.instance}","events":['
        self._head, self._tail = head, '],"running_attempt":1,"wait_seconds":0}'

    def points(self, size: int) -> MakeBody:
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
    """One MLflow run's calls of `log-batch`."""

    def __init__(self, run_id: str, size: int) -> None:
        self._step, self._size = 0, size
        metric = '{"key":"loss","value":2.1234567890123,"timestamp":1767323045678,"step":%d}'
        self._template = f'{{"run_id":"{run_id}","metrics":[' + ",".join([metric] * size) + "]}"

    def batch(self) -> bytes:
        first = self._step
        self._step += self._size
        return (self._template % tuple(range(first, self._step))).encode()


@dataclass
class Tally:
    """The rounds of one database."""

    points: list[Round] = field(default_factory=list)
    heartbeats: list[Round] = field(default_factory=list)
    mlflow: list[Round] = field(default_factory=list)
    size: int = SIZES[0]
    mlflow_size: int | None = None
    mlflow_workers: int | None = None
    why_no_mlflow: str | None = None
    bytes_a_point: float = 0.0

    def summary(self) -> dict[str, Any]:
        accepted = Spread.of([one.per_second * self.size for one in self.points])
        found: dict[str, Any] = {
            "points_per_s": accepted.rounded(),
            "points_a_report": self.size,
            "points_p50_ms": Spread.of([one.percentile(0.5) for one in self.points]).rounded(2),
            "points_p99_ms": Spread.of([one.percentile(0.99) for one in self.points]).rounded(2),
            "heartbeats_per_s": Spread.of([one.per_second for one in self.heartbeats]).rounded(),
            "heartbeat_p50_ms": Spread.of([one.percentile(0.5) for one in self.heartbeats]).rounded(
                2
            ),
            "heartbeat_p99_ms": Spread.of(
                [one.percentile(0.99) for one in self.heartbeats]
            ).rounded(2),
            "refused": sum(one.refused for one in (*self.points, *self.heartbeats)),
            "bytes_a_point": round(self.bytes_a_point, 1),
            "ratio_vs_mlflow": None,
            "why_no_mlflow": self.why_no_mlflow,
        }
        if self.mlflow and self.mlflow_size is not None:
            theirs = Spread.of([one.per_second * self.mlflow_size for one in self.mlflow])
            found["mlflow_points_per_s"] = theirs.rounded()
            found["mlflow_batch_size"] = self.mlflow_size
            found["mlflow_workers"] = self.mlflow_workers
            found["mlflow_p99_ms"] = Spread.of(
                [one.percentile(0.99) for one in self.mlflow]
            ).rounded(2)
            found["mlflow_refused"] = sum(one.refused for one in self.mlflow)
            found["ratio_vs_mlflow"] = round(accepted.median / theirs.median, 2)
        return found


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


def points_by_size(sizes: Sequence[int], a_round: Callable[[int], Round]) -> dict[int, float]:
    """Points a second at each batch size."""
    return {size: round(a_round(size).per_second * size) for size in sizes}


def best(found: dict[int, float]) -> int:
    return max(found, key=lambda size: found[size])


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def mlflow_python(given: Path | None) -> Path:
    """A Python that has MLflow: the one that was named, or that of a venv kept in `build/`."""
    if given is not None:
        return given
    python = MLFLOW_FOLDER / "bin" / "python"
    if not (MLFLOW_FOLDER / "installed").exists():
        note("Installing MLflow into build/mlflow, once")
        uv = str(Path(sys.executable).with_name("uv"))
        quiet: dict[str, Any] = {"check": True, "stdout": sys.stderr, "timeout": 600}
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(MLFLOW_FOLDER)], **quiet)
        install = [uv, "pip", "install", "-q", "--python", str(python), "mlflow", "psycopg2-binary"]
        subprocess.run(install, **quiet)
        (MLFLOW_FOLDER / "installed").touch()
    return python


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
        python = mlflow_python(args.mlflow_python)
    except (OSError, subprocess.SubprocessError) as error:
        tally.why_no_mlflow = f"MLflow could not be installed: {error}"
        yield None
        return
    tried: dict[int, dict[int, float]] = {}
    for workers in args.mlflow_workers:
        with serving.mlflow(python, folder, url, workers) as port:
            server = Mlflow(port)
            tried[workers] = points_by_size(
                args.mlflow_sizes, lambda size, server=server: server.round(args.seconds, size)
            )
        note(f"MLflow with {workers} workers, points/s by batch size: {tried[workers]}")
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

        def points(size: int) -> Round:
            return _press(target, [agent.points(size) for agent in agents], args.seconds)

        found = points_by_size(SIZES, points)
        note(f"Longhaul, points/s by batch size: {found}")
        tally.size = best(found)
        for number in range(args.rounds):
            tally.points.append(points(tally.size))
            if other is not None and tally.mlflow_size is not None:
                tally.mlflow.append(other.round(args.seconds, tally.mlflow_size))
            beats = [agent.heartbeat for agent in agents]
            tally.heartbeats.append(_press(target, beats, args.seconds / 2))
            note(f"{kind}: round {number + 1} of {args.rounds}")
    tally.bytes_a_point = _bytes_a_point(ours, before)
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


def _bytes_a_point(url: str, before: int) -> float:
    from sqlalchemy import func, select

    from orchestrator.store.tables import metric_points

    engine = open_engine(url)
    with engine.connect() as connection:
        count = connection.execute(select(func.count()).select_from(metric_points)).scalar_one()
    engine.dispose()
    return (databases.size_of(url, "metric_points") - before) / max(1, count)


def report(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The top-level numbers are those of SQLite, the default; the ratio is the lowest of all."""
    first = next(iter(found.values()))
    ratios = [one["ratio_vs_mlflow"] for one in found.values()]
    return {
        "points_per_s": first["points_per_s"]["median"],
        "heartbeats_per_s": first["heartbeats_per_s"]["median"],
        "p99_ms": first["points_p99_ms"]["median"],
        "ratio_vs_mlflow": None if None in ratios else min(ratios),
        "cores": len(os.sched_getaffinity(0)),
        "connections": CONNECTIONS,
        "points_a_report": first["points_a_report"],
        "values_a_point": VALUES_A_POINT,
        "databases": found,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the numbers as JSON, on one line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one round of points")
    parser.add_argument("--database", choices=(SQLITE, POSTGRESQL), action="append")
    parser.add_argument("--no-mlflow", action="store_true")
    parser.add_argument("--mlflow-python", type=Path, help="a Python that has MLflow")
    parser.add_argument("--mlflow-workers", type=int, nargs="+", default=MLFLOW_WORKERS)
    parser.add_argument("--mlflow-sizes", type=int, nargs="+", default=MLFLOW_SIZES)
    parser.add_argument("--quick", action="store_true", help="only to see that all of it runs")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 1.0
        args.mlflow_workers, args.mlflow_sizes = args.mlflow_workers[-2:-1], [200]
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
