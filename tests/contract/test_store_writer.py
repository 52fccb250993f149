"""The writer commits many pieces at once, and no piece takes another with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event, func, insert, select, update

from orchestrator.store.engine import open_engine
from orchestrator.store.tables import EPOCH, installation
from orchestrator.store.writer import MAX_GROUP, Writer, WriterClosed
from tests.contract.conftest import ON_POSTGRES

SETTINGS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.fixture
def writer(engine: Engine) -> Iterator[Writer]:
    writer = Writer(engine)
    yield writer
    writer.close()


def put(name: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(insert(installation).values(id=name, created_at=EPOCH))
        return name

    return work


def names(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(select(installation.c.id)))


def together(writer: Writer, *works: Callable[[Connection], str]) -> list[Future[str]]:
    """Hands in all pieces while the writer is busy, so that they share one commit."""
    go = threading.Event()
    began = threading.Event()
    first = writer.submit(lambda _connection: began.set() or go.wait(10))
    assert began.wait(10)
    futures = [writer.submit(work) for work in works]
    go.set()
    assert first.result(10)
    return futures


def test_each_commit_is_timed_also_one_that_fails(writer: Writer) -> None:
    told: list[float] = []
    writer.on_commit = told.append
    writer.submit(put("a")).result(10)
    assert len(told) == 1
    with pytest.raises(Exception, match=r"UNIQUE|unique"):
        writer.submit(put("a")).result(10)
    assert len(told) == 2
    assert all(0 < seconds < 10 for seconds in told)


def test_a_failing_piece_takes_no_other_with_it(writer: Writer, engine: Engine) -> None:
    def half(connection: Connection) -> str:
        put("half")(connection)
        raise RuntimeError("no")

    good, bad, twice, last = together(writer, put("a"), half, put("a"), put("b"))
    assert good.result(10) == "a"
    assert last.result(10) == "b"
    with pytest.raises(RuntimeError, match="no"):
        bad.result(10)
    assert "UNIQUE" in str(twice.exception(10)).upper()
    assert names(engine) == {"a", "b"}


def test_many_pieces_share_a_commit(writer: Writer, engine: Engine) -> None:
    commits = []
    event.listen(engine, "commit", commits.append)
    for future in together(writer, *(put(str(number)) for number in range(50))):
        future.result(10)
    assert len(commits) <= 3
    assert len(names(engine)) == 50


def test_a_result_is_seen_only_after_its_commit(writer: Writer, engine: Engine) -> None:
    """Whoever has the result finds the row on another connection."""

    async def check() -> None:
        for number in range(20):
            await writer.run(put(str(number)))
            with engine.connect() as connection:
                found = connection.scalar(select(func.count()).select_from(installation))
            assert found == number + 1

    asyncio.run(check())


def test_a_failed_commit_fails_every_piece_and_the_writer_lives(
    writer: Writer, engine: Engine
) -> None:
    def refuse(_connection: Connection) -> None:
        event.remove(engine, "commit", refuse)
        raise RuntimeError("the disk is full")

    go = threading.Event()
    first = writer.submit(lambda _connection: go.wait(10))
    while not first.running():
        pass
    futures = [writer.submit(put("a")), writer.submit(put("b"))]
    event.listen(engine, "commit", refuse)
    go.set()
    with pytest.raises(RuntimeError, match="disk is full"):
        first.result(10)
    for future in futures:
        future.result(10)
    assert names(engine) == {"a", "b"}


def put_all(connection: Connection, wanted: Sequence[str]) -> list[str | ValueError]:
    """Refuses "no" by itself; anything that the database refuses fails the whole batch."""
    for name in wanted:
        if name != "no":
            put(name)(connection)
    return [ValueError("no") if name == "no" else ",".join(wanted) for name in wanted]


def test_pieces_of_one_batch_run_as_one_and_each_is_answered_by_itself(
    writer: Writer, engine: Engine
) -> None:
    go = threading.Event()
    first = writer.submit(lambda _connection: go.wait(10))
    a, no, b = (writer.submit_batched(put_all, name) for name in ("a", "no", "b"))
    alone = writer.submit(put("c"))
    late = writer.submit_batched(put_all, "d")
    go.set()
    assert first.result(10)
    assert [future.result(10) for future in (a, b, late)] == ["a,no,b,d"] * 3
    assert alone.result(10) == "c"
    assert isinstance(no.exception(10), ValueError)
    assert names(engine) == {"a", "b", "c", "d"}


def test_held_pieces_share_a_commit_and_go_before_what_comes_later(
    writer: Writer, engine: Engine
) -> None:
    """Reports of one agent must be stored in the order in which they came."""

    async def check() -> None:
        held = [asyncio.create_task(writer.run_batched(put_all, name, 3600.0)) for name in "ab"]
        await asyncio.sleep(0)
        assert not names(engine)
        assert await writer.run_batched(put_all, "c") == "a,b,c"
        assert [await one for one in held] == ["a,b,c", "a,b,c"]

    asyncio.run(check())


def test_a_decision_goes_ahead_of_a_crowd_of_reports(writer: Writer, engine: Engine) -> None:
    """The lease must be renewed in time, however many agents report at once."""
    order: list[str] = []
    go, began = threading.Event(), threading.Event()

    def report(_: Connection, names: Sequence[str]) -> Sequence[str]:
        order.append(f"{len(names)} reports")
        began.set()
        assert go.wait(10)
        return names

    assert writer.lag == 0.0
    crowd = [writer.submit_batched(report, "report") for _ in range(3 * MAX_GROUP + 1)]
    assert began.wait(10)
    assert writer.lag > 0.0, "most of them wait"
    renewed = writer.submit(lambda _: order.append("lease"))
    go.set()
    renewed.result(10)
    for one in crowd:
        one.result(10)
    assert writer.lag == 0.0
    assert order[1] == "lease", order
    assert len(order) > 3


def test_held_pieces_go_by_themselves_when_their_time_is_over(writer: Writer) -> None:
    async def check() -> None:
        pieces = (writer.run_batched(put_all, name, 0.001) for name in "ab")
        assert await asyncio.wait_for(asyncio.gather(*pieces), 10) == ["a,b", "a,b"]

    asyncio.run(check())


def test_closing_finishes_what_is_held(engine: Engine) -> None:
    async def check() -> None:
        writer = Writer(engine)
        held = asyncio.create_task(writer.run_batched(put_all, "a", 3600.0))
        await asyncio.sleep(0)
        writer.close()
        assert await held == "a"
        with pytest.raises(WriterClosed):
            await writer.run_batched(put_all, "b", 3600.0)

    asyncio.run(check())


def test_a_batch_that_fails_runs_piece_by_piece(writer: Writer, engine: Engine) -> None:
    go = threading.Event()
    writer.submit(lambda _connection: go.wait(10))
    futures = [writer.submit_batched(put_all, name) for name in ("a", "b", "a", "c")]
    go.set()
    assert "UNIQUE" in str(futures[2].exception(10)).upper()
    assert [future.result(10) for future in (futures[0], futures[1], futures[3])] == ["a", "b", "c"]
    assert names(engine) == {"a", "b", "c"}


def test_closing_finishes_what_was_submitted_and_takes_no_more(engine: Engine) -> None:
    writer = Writer(engine)
    futures = [writer.submit(put(str(number))) for number in range(20)]
    writer.close()
    assert [future.result(0) for future in futures] == [str(number) for number in range(20)]
    with pytest.raises(WriterClosed):
        writer.submit(put("late"))
    writer.close()
    assert len(names(engine)) == 20


def test_sqlite_syncs_every_commit(tmp_path: Path) -> None:
    """What was answered must also outlive the machine's power, not this process alone."""
    engine = open_engine(f"sqlite:///{tmp_path / 'longhaul.db'}")
    with engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in SETTINGS]
    engine.dispose()
    assert dict(zip(SETTINGS, pragmas, strict=True)) == SETTINGS


def test_what_a_full_disk_takes_back_is_told_to_nobody(tmp_path: Path) -> None:
    """SQLite ends the whole transaction by itself where a statement finds no room."""
    engine = open_engine(f"sqlite:///{tmp_path / 'small.db'}")
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA max_page_count = 6"))
    installation.create(engine)
    writer = Writer(engine)
    futures = together(writer, put("a"), put("b" * 30_000), put("c"))
    told = {future.result() for future in futures if future.exception(10) is None}
    assert told <= names(engine)
    assert writer.submit(put("d")).result(10) == "d"
    assert "d" in names(engine)
    writer.close()
    engine.dispose()


def touch(connection: Connection, name: str) -> None:
    connection.execute(
        update(installation).where(installation.c.id == name).values(restored_at=EPOCH)
    )


@pytest.mark.parametrize("database_url", [ON_POSTGRES], indirect=True)
def test_two_replicas_whose_writes_wait_for_each_other_both_succeed(database_url: str) -> None:
    """PostgreSQL ends one of the two transactions; its piece runs again."""
    engines = [open_engine(database_url) for _ in range(2)]
    writers = [Writer(engine) for engine in engines]
    for name in ("a", "b"):
        writers[0].submit(put(name)).result(10)
    met = threading.Barrier(2, timeout=10)
    tries = [0, 0]

    def crosswise(which: int) -> Callable[[Connection], str]:
        def work(connection: Connection) -> str:
            first, second = ("a", "b") if which == 0 else ("b", "a")
            touch(connection, first)
            tries[which] += 1
            if tries[which] == 1:
                met.wait()
            touch(connection, second)
            return first

        return work

    futures = [writer.submit(crosswise(which)) for which, writer in enumerate(writers)]
    assert [future.result(30) for future in futures] == ["a", "b"]
    assert sorted(tries) == [1, 2]
    for writer, engine in zip(writers, engines, strict=True):
        writer.close()
        engine.dispose()
