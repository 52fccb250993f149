"""Bundles on both databases: whole or not there, and never dropped from under a run."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, select, update

from orchestrator.store import bundles, tables
from tests.contract.conftest import START, House

ONE, OTHER = "1" * 64, "2" * 64
DAY = timedelta(days=1)


def keep(engine: Engine, sha256: str, *parts: bytes) -> None:
    with engine.begin() as connection:
        bundles.begin(connection, sha256, sum(map(len, parts)), START)
        bundles.add(connection, sha256, 0, parts)
        bundles.finish(connection, sha256, START)


def test_it_counts_once_its_last_part_is_there(engine: Engine) -> None:
    with engine.begin() as connection:
        bundles.begin(connection, ONE, 4, START)
        bundles.add(connection, ONE, 0, [b"ab"])
        assert bundles.size_of(connection, ONE) is None
        assert not bundles.use(connection, ONE, START)
    keep(engine, ONE, b"ab", b"\x00\xff")  # sent again after a crash
    with engine.begin() as connection:
        assert bundles.size_of(connection, ONE) == 4
        assert [bundles.part(connection, ONE, n) for n in range(3)] == [b"ab", b"\x00\xff", b""]


def test_one_that_is_used_meanwhile_stays(house: House, engine: Engine) -> None:
    house.submit()
    for sha256 in (ONE, OTHER):
        keep(engine, sha256, b"x")
    spec = f'{{"name":"r1","bundle":"sha256:{ONE}"}}'
    with engine.begin() as connection:
        connection.execute(update(tables.revisions).values(spec=spec))
        assert bundles.unnamed(connection, START) == [], "not yet"
        assert bundles.unnamed(connection, START + DAY) == [OTHER]
        assert bundles.use(connection, OTHER, START + DAY)
        bundles.drop(connection, OTHER, START + DAY)
        assert bundles.size_of(connection, OTHER) == 1
        bundles.drop(connection, OTHER, START + 2 * DAY)
        assert bundles.size_of(connection, OTHER) is None
        left = connection.scalars(select(tables.bundle_parts.c.sha256)).all()
    assert left == [ONE]
