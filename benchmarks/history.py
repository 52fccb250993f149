"""What a chart and the goodput ledger cost over a long history, with its summaries and without.

`python -m benchmarks.history --json` prints one JSON object on its last line. The points are made
in the database itself; that part is not measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, select, text

from benchmarks.databases import size_of
from benchmarks.seeds import seed_hosts
from orchestrator.ledger.goodput import account
from orchestrator.ledger.rollups import column_width
from orchestrator.store import history, rollups, tables, views
from orchestrator.store.engine import open_engine
from orchestrator.store.migrate import upgrade

COLUMNS = 600
MAKE_POINTS = """
WITH RECURSIVE steps(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM steps WHERE n < :count)
INSERT INTO metric_points (run_id, attempt, step, at, loss, grad_norm, learning_rate, tokens,
                           seconds, data_wait, batch_hash)
SELECT 'bench0', 1, n, 1767323045678901 + n * 500000, 10.0 / n + (n % 97) / 1000.0, 1.0 + (n % 7),
       0.0003, 524288, 0.5, 0.001, '0123456789abcdef' FROM steps
"""


def measure(engine: Engine, count: int) -> dict[str, Any]:
    with engine.begin() as connection:
        connection.execute(text(MAKE_POINTS), {"count": count})
    before = {"without_summaries": _reads(engine, count)}
    began = time.perf_counter()
    transactions, longest = 0, 0.0
    more = True
    while more:
        started = time.perf_counter()
        with engine.begin() as connection:
            more = rollups.sum_up(connection, "bench0", 1)
        transactions += 1
        longest = max(longest, time.perf_counter() - started)
    seconds = time.perf_counter() - began
    return {
        "points": count,
        "chart_ms": (found := _reads(engine, count))["chart_ms"],
        "goodput_ms": found["goodput_ms"],
        "chart_columns": found["chart_columns"],
        **before,
        "summed_up_points_per_s": round(count / seconds),
        "longest_transaction_ms": round(longest * 1000, 1),
        "transactions": transactions,
    }


def _reads(engine: Engine, count: int) -> dict[str, Any]:
    columns: list[int] = []

    def chart(connection: Connection) -> None:
        parts = history.segments(connection, "bench0", 1)
        width, span = column_width(count, COLUMNS)
        columns.append(len(history.columns(connection, "bench0", parts, width, span)))

    def goodput(connection: Connection) -> None:
        run = connection.execute(select(tables.runs).where(tables.runs.c.id == "bench0")).one()
        account(views.times_of(connection, run, datetime.now(UTC)))

    times = {"chart_ms": _timed(engine, chart), "goodput_ms": _timed(engine, goodput)}
    return times | {"chart_columns": columns[0]}


def _timed(engine: Engine, work: Callable[[Connection], None]) -> float:
    """The faster of two, in milliseconds: the first one fills the cache."""
    found: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        with engine.connect() as connection:
            work(connection)
        found.append(time.perf_counter() - began)
    return round(min(found) * 1000, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the numbers as JSON, on one line")
    parser.add_argument("--points", type=int, default=10_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as folder:
        url = f"sqlite:///{Path(folder) / 'longhaul.db'}"
        engine = open_engine(url)
        upgrade(engine)
        seed_hosts(engine, 1)
        result = measure(engine, args.points)
        result["bytes_a_point"] = round(size_of(url, "metric_points") / args.points, 1)
        engine.dispose()
    print(json.dumps(result) if args.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
