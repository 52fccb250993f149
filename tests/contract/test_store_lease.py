"""At most one control plane holds the lease, and whoever lost it is fenced."""

from __future__ import annotations

import multiprocessing
import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select, text, update

from orchestrator.store import lease
from orchestrator.store.engine import open_engine
from orchestrator.store.tables import EPOCH, installation, leases

LONG = timedelta(seconds=60)
SHORT = timedelta(milliseconds=40)


def take(engine: Engine, owner: str, ttl: timedelta = LONG) -> int | None:
    with engine.begin() as connection:
        return lease.acquire(connection, lease.LEADER, owner, ttl)


def expire(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(update(leases).values(expires_at=EPOCH))


def test_held_by_one_until_it_runs_out(engine: Engine) -> None:
    assert take(engine, "a") == 1
    assert take(engine, "b") is None
    assert take(engine, "a") == 1
    expire(engine)
    assert take(engine, "b") == 2
    assert take(engine, "a") is None


def test_a_renewal_moves_the_end(engine: Engine) -> None:
    take(engine, "a")
    expire(engine)
    assert take(engine, "a") == 1
    assert take(engine, "b") is None


def test_the_end_is_on_the_databases_clock(engine: Engine) -> None:
    take(engine, "a")
    with engine.begin() as connection:
        now = connection.scalar(select(lease.DatabaseNow()))
        until = connection.scalar(select(leases.c.expires_at))
    assert now is not None
    assert until is not None
    left = until - EPOCH - timedelta(microseconds=now)
    assert timedelta(seconds=50) < left <= LONG


def test_release_lets_the_next_one_in_and_fences_the_old(engine: Engine) -> None:
    first = take(engine, "a")
    assert first is not None
    with engine.begin() as connection:
        lease.check(connection, first)
        lease.release(connection, lease.LEADER, "b")
        lease.check(connection, first)
        lease.release(connection, lease.LEADER, "a")
        with pytest.raises(lease.Fenced):
            lease.check(connection, first)
    second = take(engine, "b")
    assert second is not None
    assert second > first


def test_check_refuses_an_old_token(engine: Engine) -> None:
    first = take(engine, "a")
    assert first is not None
    expire(engine)
    take(engine, "b")
    with engine.begin() as connection, pytest.raises(lease.Fenced):
        lease.check(connection, first)


def _contend(url: str, owner: str, until: float, held: object) -> None:
    engine = open_engine(url)
    while time.time() < until:
        token = take(engine, owner, SHORT)
        if token is not None:
            with engine.begin() as connection:
                try:
                    lease.check(connection, token)
                except lease.Fenced:
                    continue
                held.append((token, owner))  # type: ignore[attr-defined]
            if token % 2:
                time.sleep(0.05)
            else:
                with engine.begin() as connection:
                    lease.release(connection, lease.LEADER, owner)
        time.sleep(0.001)
    engine.dispose()


def test_under_contention_each_token_has_one_owner_and_tokens_rise(
    engine: Engine, database_url: str
) -> None:
    """`held` is appended to while the lease's row is held still, so its order is the truth."""
    held: list[tuple[int, str]] = []
    until = time.time() + 1.0
    threads = [
        threading.Thread(target=_contend, args=(database_url, name, until, held)) for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owners: dict[int, set[str]] = {}
    for token, owner in held:
        owners.setdefault(token, set()).add(owner)
    assert len(owners) > 3
    assert all(len(names) == 1 for names in owners.values())
    tokens = [token for token, _ in held]
    assert tokens == sorted(tokens)


def _count_up(url: str, times: int) -> None:
    engine = open_engine(url)
    for _ in range(times):
        with engine.begin() as connection:
            held = connection.execute(
                select(installation.c.created_at).with_for_update()
            ).scalar_one()
            connection.execute(
                update(installation).values(created_at=held + timedelta(microseconds=1))
            )
    engine.dispose()


def test_processes_that_read_and_then_write_lose_no_update(
    engine: Engine, database_url: str
) -> None:
    with engine.begin() as connection:
        connection.execute(installation.insert().values(id="x", created_at=EPOCH))
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_count_up, args=(database_url, 150)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with engine.begin() as connection:
        count = connection.execute(select(installation.c.created_at)).scalar_one() - EPOCH
    assert count == timedelta(microseconds=450)


def test_a_reading_transaction_sees_one_moment(engine: Engine) -> None:
    from orchestrator.store.engine import reading

    take(engine, "a")
    with reading(engine).connect() as reader:
        before = reader.scalar(select(leases.c.owner))
        expire(engine)
        take(engine, "b")
        assert reader.scalar(select(leases.c.owner)) == before == "a"


def test_a_reading_engine_waits_for_no_writer(engine: Engine) -> None:
    from orchestrator.store.engine import reading

    take(engine, "a")
    with engine.begin() as writing, reading(engine).connect() as reader:
        writing.execute(update(leases).values(owner="b"))
        assert reader.scalar(text("SELECT owner FROM leases")) == "a"
