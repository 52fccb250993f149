"""The reader over a real database: what the pages show is what the API's views tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dashboard import router as dashboard
from orchestrator.dashboard.reader import AuditAsked, LogAsked
from orchestrator.dashboard.views_reader import ViewsReader
from orchestrator.store.tables import log_lines, trainers
from tests.unit.api_world import World, at, seed_crashed, tiny_spec, world


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        dashboard.mount(made.app)
        yield made


def test_a_crashed_run_reads_as_its_views_tell(made: World) -> None:
    with made.client() as client:
        run = client.post("/api/v1/runs", json=tiny_spec("tiny")).json()["id"]
        seed_crashed(made, run)
        with made.service.read.connect() as connection:
            reader = ViewsReader(connection, made.service)
            assert [one.name for one in reader.runs()] == ["tiny"]
            assert reader.run("tiny") == reader.run(run)
            assert reader.run("nobody") is None
            assert [a.number for a in reader.attempts(run)] == [1, 2]
            assert [c.step for c in reader.checkpoints(run)] == [10]
            assert [i.attempt for i in reader.incidents(run)] == [1]
            assert [c.last for c in reader.chart(run, 100, 15).columns] == list(range(15, 21))
            assert len(reader.losses(run, 1000)) == 20
            assert reader.goodput(run).wall_seconds == 40
            assert reader.logs(run, 10) == ()
            assert [c.step_seconds for c in reader.chart(run, 100, 19).columns] == [1.0, 1.0]
            assert [one.number for one in reader.revisions(run)] == [1]
            assert [(b.number, b.parent) for b in reader.branches(run)] == [(1, None)]
            assert reader.spent(at(0), at(40)) is None
            assert reader.tokens() == ()
            [deed] = reader.audit(AuditAsked(action="run.submit")).items
            assert (deed.actor, deed.target) == ("admin", run)
            assert reader.audit(AuditAsked(actor="nobody")).items == ()


def test_who_trains_now_is_told_by_rank(made: World) -> None:
    with made.client() as client:
        run = client.post("/api/v1/runs", json=tiny_spec("tiny")).json()["id"]
        seed_crashed(made, run)
        row = {"run_id": run, "attempt": 2, "rank": 0, "phase": "train", "pace_seconds": 0.5}
        made.put(trainers, row | {"pace_own": 0.4, "slow_why": "it \x1b[31mwaits"})
        with made.service.read.connect() as connection:
            [told] = ViewsReader(connection, made.service).trainers(run)
    assert (told.rank, told.step_seconds, told.own_seconds) == (0, 0.5, 0.4)
    assert told.slow == "it waits"


def test_the_log_is_searched_in_any_case_and_by_rank(made: World) -> None:
    with made.client() as client:
        run = client.post("/api/v1/runs", json=tiny_spec("tiny")).json()["id"]
        lines = [
            {"run_id": run, "attempt": 1, "rank": n % 2, "at": at(n), "line": f"Step {n}"}
            for n in range(12)
        ]
        made.put(log_lines, *lines)
        with made.service.read.connect() as connection:
            reader = ViewsReader(connection, made.service)
            found = reader.logs(run, 10, LogAsked("step 1"))
            assert [line.line for line in found] == ["Step 1", "Step 10", "Step 11"]
            assert [line.line for line in reader.logs(run, 2, LogAsked(rank=0))] == [
                "Step 8",
                "Step 10",
            ]


def test_the_pages_show_it(made: World) -> None:
    with made.client() as client:
        run = client.post("/api/v1/runs", json=tiny_spec("tiny")).json()["id"]
        seed_crashed(made, run)
        overview, page = client.get("/"), client.get("/runs/tiny")
        drawn = client.get(f"/runs/{run}/figures.json").json()
    assert overview.status_code == page.status_code == 200
    assert 'href="/runs/tiny"' in overview.text
    assert "It was killed once; it went on by itself with bit-identical losses." in page.text
    assert "6 steps" in page.text
    assert "\x1b" not in page.text
    assert drawn["step"] == list(range(1, 21))


def test_without_a_session_a_page_says_how_to_come_in(made: World) -> None:
    with made.client(token=None) as client:
        answer = client.get("/")
    assert answer.status_code == 401
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "longhaul link" in answer.text
