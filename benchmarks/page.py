"""What a run's page costs with 10 million steps behind it, in a real Chromium.

`python -m benchmarks.page --json` prints one JSON object on its last line. The points are made in
the database itself and summed up as the service does it; that part is not measured. Every opening
is by a browser that has nothing cached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Request, sync_playwright
from sqlalchemy import Engine, insert, text

from benchmarks.history import MAKE_POINTS
from benchmarks.seeds import seed_hosts
from benchmarks.serving import longhaul
from orchestrator.store import rollups, tables
from orchestrator.store.engine import open_engine
from orchestrator.store.migrate import upgrade

CHROMIUM = "/usr/bin/chromium"
CHECKPOINTS, LINES = 40, 2000  # those and more stand behind any long run's page
PAINTS = """() => Object.fromEntries(performance.getEntriesByType("paint")
  .map((entry) => [entry.name, entry.startTime]))"""


def fill(engine: Engine, count: int) -> None:
    upgrade(engine)
    seed_hosts(engine, 1)
    now = datetime.now(UTC)
    with engine.begin() as connection:
        connection.execute(text(MAKE_POINTS), {"count": count})
        saves = [_checkpoint(n * count // CHECKPOINTS, now) for n in range(1, CHECKPOINTS + 1)]
        connection.execute(insert(tables.checkpoints), saves)
        connection.execute(insert(tables.log_lines), [_line(n, now) for n in range(LINES)])
    more = True
    while more:
        with engine.begin() as connection:
            more = rollups.sum_up(connection, "bench0", 1)


def _checkpoint(step: int, now: datetime) -> dict[str, Any]:
    return {
        "run_id": "bench0",
        "id": f"a1-s{step}",
        "attempt": 1,
        "branch": 1,
        "step": step,
        "uri": f"/storage/runs/bench0/a1/checkpoints/{step}",
        "state": "verified",
        "bytes": 12_600_000,
        "files": 14,
        "manifest_sha256": "m" * 64,
        "state_digest": "d" * 64,
        "stall_seconds": 0.04,
        "write_seconds": 0.3,
        "written_at": now,
        "accepted_at": now,
        "verified_at": now,
    }


def _line(number: int, now: datetime) -> dict[str, Any]:
    words = f"step {number} loss 2.4251 grad_norm 0.41 lr 0.0003 8,412 tok/s"
    at = now - timedelta(seconds=LINES - number)
    return {"run_id": "bench0", "attempt": 1, "rank": 0, "at": at, "line": words}


def look(browser: Browser, link: str, url: str) -> dict[str, float]:
    """One opening of the run's page. Signing in fills a cache, so another context does that."""
    door = browser.new_context()
    door.new_page().goto(link)
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_cookies(door.cookies())  # pyright: ignore[reportArgumentType]
    door.close()
    page, sizes = context.new_page(), list[int]()
    page.on("requestfinished", lambda request: _note(sizes, request))
    page.goto(f"{url}/runs/bench0")
    page.wait_for_selector("#chart-loss path.curve", state="attached")
    drawn = page.evaluate("performance.now()")
    paints = page.evaluate(PAINTS)
    context.close()
    return {
        "first_paint_ms": paints["first-paint"],
        "first_contentful_paint_ms": paints["first-contentful-paint"],
        "charts_drawn_ms": drawn,
        "transferred_bytes": sum(sizes),
    }


def _note(sizes: list[int], request: Request) -> None:
    told = request.sizes()
    sizes.append(told["responseBodySize"] + told["responseHeadersSize"])


def measure(folder: Path, points: int, openings: int) -> dict[str, Any]:
    database = f"sqlite:///{folder / 'longhaul.db'}"
    engine = open_engine(database)
    fill(engine, points)
    engine.dispose()
    with longhaul(folder, database) as port, sync_playwright() as playwright:
        url = f"http://127.0.0.1:{port}"
        token = (folder / "token").read_text().strip()
        api = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"})
        looks: list[dict[str, float]] = []
        for _ in range(openings + 1):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            link = api.post("/api/v1/login-codes").raise_for_status().json()["url"]
            looks.append(look(browser, link, url))
            browser.close()
        step = api.get("/api/v1/runs/bench0").json()["progress"]["step"]
    return {"points": points, "newest_step": step, "openings": openings, **_summed(looks[1:])}


def _summed(looks: list[dict[str, float]]) -> dict[str, Any]:
    """Median and worst; the first opening of all warmed the database's cache and is left out."""
    found: dict[str, Any] = {}
    for name in looks[0]:
        values = [one[name] for one in looks]
        found[name] = round(statistics.median(values))
        found[f"{name}_worst"] = round(max(values))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the numbers as JSON, on one line")
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--openings", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as folder:
        result = measure(Path(folder), args.points, args.openings)
    print(json.dumps(result) if args.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
