"""Summaries equal the points that they stand for, whatever comes late or is dropped."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import Connection, Engine, event, func, insert, select

from orchestrator.ledger.history import Segment
from orchestrator.ledger.rollups import SPANS, column_width
from orchestrator.reconcile.plan import EndAttempt
from orchestrator.state import Verdict
from orchestrator.store import history, reads, retention, rollups, summaries, tables, views
from tests.contract.conftest import START, House
from tests.contract.test_store_ingest import step

POINTS = tables.metric_points


@pytest.fixture
def running(house: House) -> House:
    house.ready()
    house.attempt()
    return house


def point(number: int, attempt: int = 1, **changes: object) -> dict[str, object]:
    chance = random.Random(number * 7 + attempt)
    loss = None if number % 97 == 0 else chance.uniform(1, 9)
    told: dict[str, object] = {
        "run_id": "r1",
        "attempt": attempt,
        "step": number,
        "at": START + timedelta(seconds=number),
        "loss": loss,
        "grad_norm": None if number % 89 == 0 else chance.random(),
        "learning_rate": 1 / number,
        "tokens": 2048,
        "seconds": 0.5,
        "data_wait": 0.125,
        "batch_hash": "h",
    }
    return told | changes


def put(engine: Engine, first: int, last: int, attempt: int = 1) -> None:
    with engine.begin() as connection:
        connection.execute(insert(POINTS), [point(n, attempt) for n in range(first, last + 1)])


def sum_up(engine: Engine, attempt: int = 1) -> None:
    more = True
    while more:
        with engine.begin() as connection:
            more = rollups.sum_up(connection, "r1", attempt)


def columns(engine: Engine, parts: list[Segment], width: int, longest: int) -> list[history.Column]:
    with engine.connect() as connection:
        return history.columns(connection, "r1", parts, width, longest)


def same(one: object, other: object) -> bool:
    """Sums of floats depend on the order in which they are taken; nothing else may differ."""
    pairs = zip(vars(one).items(), vars(other).items(), strict=True)
    return all(
        math.isclose(a, b, rel_tol=1e-12) if name.endswith("_mean") and a and b else a == b
        for (name, a), (_, b) in pairs
    )


def assert_equal_to_points(engine: Engine, parts: list[Segment], width: int) -> None:
    raw = columns(engine, parts, width, 1)
    for longest in (span for span in SPANS if width % span == 0):
        summed = columns(engine, parts, width, longest)
        assert len(summed) == len(raw)
        assert all(same(one, other) for one, other in zip(summed, raw, strict=True))


def test_summaries_equal_points_through_crashes_and_late_reports(
    running: House, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume cuts a span in two; late points of the old attempt land beside the history."""
    monkeypatch.setattr(rollups, "POINTS_AT_ONCE", 640)
    put(engine, 1, 1300)
    sum_up(engine)
    running.commit(EndAttempt(1, Verdict.CRASHED, "it fell", ()))
    running.attempt(2, step=700)
    put(engine, 701, 1999, attempt=2)
    sum_up(engine, 2)
    put(engine, 1301, 1500)
    sum_up(engine)
    with engine.connect() as connection:
        parts = list(history.segments(connection, "r1", 1))
    assert [(part.attempt, part.after, part.through) for part in parts] == [
        (1, 0, 700),
        (2, 700, None),
    ]
    assert_equal_to_points(engine, parts, 64)
    assert_equal_to_points(engine, parts, 1024)
    assert_equal_to_points(engine, [Segment(1, 0, None)], 512)
    found = columns(engine, parts, 512, 512)
    assert [(one.attempt, one.first, one.last) for one in found] == [
        (1, 1, 512),
        (1, 513, 700),
        (2, 701, 1024),
        (2, 1025, 1536),
        (2, 1537, 1999),
    ]
    spans = Counter((row["attempt"], row["span"]) for row in running.rows("metric_rollups"))
    assert spans == {(1, 64): 23, (1, 512): 2, (2, 64): 21, (2, 512): 2}


def test_a_point_that_comes_late_is_summed_up_too_and_once(running: House, engine: Engine) -> None:
    with engine.begin() as connection:
        told = [point(n) for n in range(1, 1100) if n not in (70, 128, 1024)]
        connection.execute(insert(POINTS), told)
    sum_up(engine)
    late = [
        running.envelope(step(70, loss=0.5)),
        running.envelope(step(128, loss="NaN", grad_norm="Infinity")),
        running.envelope(step(1024, loss=99.0)),
        running.envelope(step(1100)),
    ]
    running.send(*late)
    again = [running.envelope(step(70, loss=-1.0)), running.envelope(step(5, loss=-1.0))]
    running.send(*again)
    assert_equal_to_points(engine, [Segment(1, 0, None)], 512)
    first, second, _ = columns(engine, [Segment(1, 0, None)], 512, 512)
    assert (first.loss_min, second.loss_max, second.loss_last) == (0.5, 99.0, 99.0)
    with engine.connect() as connection:
        whole = summaries.totals(connection, "r1", [Segment(1, 0, None)])[1]
    assert whole.count == 1100


def test_summing_up_again_changes_nothing(running: House, engine: Engine) -> None:
    put(engine, 1, 600)
    sum_up(engine)
    before = running.rows("metric_rollups")
    sum_up(engine)
    assert running.rows("metric_rollups") == before
    with engine.connect() as connection:
        assert rollups.behind(connection, None) == []
    put(engine, 601, 704)
    with engine.connect() as connection:
        assert rollups.behind(connection, START) == [("r1", 1)]


# ---- what is read ------------------------------------------------------------------------------


@contextmanager
def rows_read(engine: Engine) -> Iterator[Counter[str]]:
    """Counts the rows that metric queries give back."""
    counted: Counter[str] = Counter()
    fetch = summaries._summaries

    def counting(connection: Connection, query: object) -> list[object]:
        found = fetch(connection, query)  # type: ignore[arg-type]
        counted["rows"] += len(found)
        counted["queries"] += 1
        return found  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summaries, "_summaries", counting)
        yield counted


def test_a_chart_over_ten_million_points_reads_a_few_thousand_rows(
    running: House, engine: Engine
) -> None:
    """Only summaries exist here, so that whatever read raw points would miss them."""
    last = 10_000_000
    width, span = column_width(last, 600)
    with engine.begin() as connection:
        for length in SPANS:
            if length >= span:
                made = [
                    rollups._row("r1", length, first, rollups._summary_of(point(first)))
                    for first in range(1, last // length * length + 1, length)
                ]
                connection.execute(insert(tables.metric_rollups), made)
    with rows_read(engine) as counted:
        found = columns(engine, [Segment(1, 0, last)], width, span)
    assert len(found) > 400
    assert counted["rows"] < 3000
    assert counted["queries"] < 12


def test_the_loop_reads_no_metric_event_or_log_rows(running: House, engine: Engine) -> None:
    """A decision must cost the same at any age of the run."""
    running.tell(step(1), {"kind": "log", "lines": ["x"]}, running=1)
    seen: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        with engine.connect() as connection:
            reads.active(connection)
            reads.live_groups(connection)
        running.commit(EndAttempt(1, Verdict.CRASHED, "it fell", ()))
    finally:
        event.remove(engine, "before_cursor_execute", note)
    looked = [text.split("FROM", 1)[1] for text in seen if text.lstrip().startswith("SELECT")]
    assert len(looked) > 6
    for table in ("metric_points", "metric_rollups", "evals", "events", "log_lines"):
        assert not [text for text in looked if table in text]


# ---- retention ---------------------------------------------------------------------------------


def drop(engine: Engine, cutoff_step: int, attempt: int = 1) -> None:
    cutoff = START + timedelta(seconds=cutoff_step)
    more = True
    while more:
        with engine.begin() as connection:
            more = retention.drop_points(connection, "r1", attempt, cutoff)


def test_old_points_go_and_charts_and_goodput_stay(running: House, engine: Engine) -> None:
    put(engine, 1, 9000)
    running.commit(EndAttempt(1, Verdict.CRASHED, "it fell", ()))
    running.attempt(2, step=8500)
    put(engine, 8501, 12_500, attempt=2)
    for attempt in (1, 2):
        sum_up(engine, attempt)
    run = None
    with engine.connect() as connection:
        run = connection.execute(select(tables.runs)).one()
        parts = list(history.segments(connection, "r1", 1))
        before = views.times_of(connection, run, START + timedelta(seconds=13_000))
        replayed = history.replays(connection, "r1")
    charts = [columns(engine, parts, 512, 512), columns(engine, parts, 64, 64)]
    for attempt in (1, 2):
        drop(engine, 20_000, attempt)
    with engine.connect() as connection:
        left = connection.execute(select(func.count()).select_from(POINTS)).scalar_one()
        after = views.times_of(connection, run, START + timedelta(seconds=13_000))
        assert history.replays(connection, "r1") == replayed
    assert left < 13_000 / 2
    assert after == before
    assert [columns(engine, parts, 512, 512), columns(engine, parts, 64, 64)] == charts


def test_a_point_of_a_dropped_span_is_not_taken_again(running: House, engine: Engine) -> None:
    put(engine, 1, 5000)
    sum_up(engine)
    drop(engine, 20_000)
    before = running.rows("metric_rollups")
    running.send(running.envelope(step(3000, loss=0.0)))
    assert running.rows("metric_rollups") == before
    assert 3000 not in [row["step"] for row in running.rows("metric_points")]


def test_points_that_are_young_stay(running: House, engine: Engine) -> None:
    put(engine, 1, 9000)
    sum_up(engine)
    drop(engine, 4200)
    left = [row["step"] for row in running.rows("metric_points")]
    assert min(step for step in left if step > 64) == 4097


def test_old_log_lines_go_and_so_do_those_beyond_the_most(
    running: House, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LINES_AT_ONCE", 7)
    with engine.begin() as connection:
        connection.execute(
            insert(tables.log_lines),
            [
                {"run_id": "r1", "attempt": 1, "rank": 0, "line": str(n), "at": point(n)["at"]}
                for n in range(1, 51)
            ],
        )

    def left(cutoff: int | None, most: int) -> list[str]:
        at = None if cutoff is None else START + timedelta(seconds=cutoff)
        more = True
        while more:
            with engine.begin() as connection:
                bound = retention.log_bound(connection, "r1", most)
                more = retention.drop_lines(connection, "r1", at, bound)
        return [str(row["line"]) for row in running.rows("log_lines")]

    assert left(None, 1000)[0] == "1"
    assert left(21, 1000)[0] == "21"
    assert left(None, 5) == ["46", "47", "48", "49", "50"]
    with engine.connect() as connection:
        assert retention.log_runs(connection) == ["r1"]
