"""A backup goes from either database to either, whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, MetaData, select, text, update

from orchestrator.state import RunState
from orchestrator.store import backup, bundles, lease, migrate, orphans, tables
from orchestrator.store.engine import open_engine, reading
from tests.contract.conftest import BOTH, House
from tests.contract.conftest import _new_postgres_database as new_postgres_database
from tests.contract.test_store_migrate import contents, seed_first

CHANGED = {"installation", "leases", "sessions", "login_codes"}


@pytest.fixture
def source(empty_url: str) -> Iterator[Engine]:
    engine = open_engine(empty_url)
    yield engine
    engine.dispose()


@pytest.fixture(params=BOTH)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'other.db'}"
    else:
        url = new_postgres_database(request.getfixturevalue("postgres_server"))
    engine = open_engine(url)
    yield engine
    engine.dispose()


def filled(source: Engine) -> House:
    """A run that trains, and a row or more in every table."""
    migrate.upgrade(source)
    with source.begin() as connection:
        migrate.ensure_installation(connection, House(source).now)
    house = House(source)
    house.ready()
    house.attempt()
    house.tell({"kind": "trainer_started", "pid": 7}, running=1)
    step = {"step": 1, "grad_norm": 0.1, "learning_rate": 1e-4, "tokens": 9, "seconds": 0.25}
    house.tell({"kind": "step", "loss": 1 / 3, "data_wait": 0.0, "batch_hash": "b"} | step)
    house.tell({"kind": "log", "lines": ["ünïcode \U0001f600 \u2028", "tab\t"]})
    with source.begin() as connection:
        bundles.begin(connection, "b" * 64, 3, house.now)
        bundles.add(connection, "b" * 64, 0, [b"\x00\xff'", b""])
        bundles.finish(connection, "b" * 64, house.now)
        lease.release(connection, lease.LEADER, "me")
    return house


def rows_of(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    return {name: rows for name, rows in contents(engine).items() if name not in CHANGED}


def test_every_row_arrives_and_the_run_goes_on(
    source: Engine, target: Engine, tmp_path: Path
) -> None:
    house, path = filled(source), tmp_path / "b.gz"
    told: list[int] = []
    made = backup.write(reading(source), path, house.now, lambda _t, done, _n: told.append(done))
    assert path.stat().st_mode & 0o777 == 0o600
    assert told[-1] == made.total > 10
    backup.restore(target, path, house.now)
    assert rows_of(target) == rows_of(source)
    with target.connect() as connection:
        here = connection.execute(select(tables.installation)).mappings().one()
        assert (here["id"], here["restored_at"]) == (made.installation, house.now)
        assert not orphans.reaps(connection)
        assert connection.execute(select(tables.leases)).all() == []
    # The agent speaks with the same secret, and the trainer that it runs is the current one.
    again = House(target, house.now, seqs=house.seqs)
    again.lead()
    assert again.snapshot().run.state is RunState.STARTING
    again.tell({"kind": "beat", "step": 2, "seconds": 0.1, "data_wait": 0.0}, running=1)
    assert again.rows("hosts")[0]["acked_seq"] == house.seqs[0]
    assert len(again.rows("events")) == len(house.rows("events"))
    again.tell({"kind": "phase", "phase": "eval"}, running=1)  # ids go on after the restored ones


def test_an_older_backup_is_brought_to_todays_schema(
    source: Engine, target: Engine, tmp_path: Path
) -> None:
    with migrate.locked(source) as connection:
        command.upgrade(migrate.config(connection), "0001")
    seed_first(source)
    header = backup.write(reading(source), tmp_path / "b.gz", House(source).now)
    assert header.revision == "0001"
    backup.restore(target, tmp_path / "b.gz", House(source).now)
    with target.connect() as connection:
        [revision] = connection.scalars(text("SELECT version_num FROM alembic_version"))
        assert revision == migrate.newest()
        assert len(connection.execute(select(tables.claims)).all()) == 4


def test_a_newer_backup_is_refused(source: Engine, target: Engine, tmp_path: Path) -> None:
    migrate.upgrade(source)
    with source.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    backup.write(reading(source), tmp_path / "b.gz", House(source).now)
    with pytest.raises(backup.BackupError, match="revision 9999, which this Longhaul does not"):
        backup.restore(target, tmp_path / "b.gz", House(source).now)
    assert contents(target) == {}


def test_a_database_with_rows_is_only_replaced_by_force(source: Engine, tmp_path: Path) -> None:
    house, path = filled(source), tmp_path / "b.gz"
    backup.write(reading(source), path, house.now)
    before = rows_of(source)
    with source.begin() as connection:
        connection.execute(update(tables.runs).values(name="changed"))
    with pytest.raises(backup.BackupError, match="not empty"):
        backup.restore(source, path, house.now)
    backup.restore(source, path, house.now, force=True)
    assert rows_of(source) == before


def test_a_database_that_is_served_is_left_alone(source: Engine, tmp_path: Path) -> None:
    house, path = filled(source), tmp_path / "b.gz"
    backup.write(reading(source), path, house.now)
    before = contents(source)
    house.lead("somebody")
    with pytest.raises(backup.BackupError, match="a service works on this database: somebody"):
        backup.restore(source, path, house.now, force=True)
    assert {**contents(source), "leases": []} == {**before, "leases": []}


def test_a_restore_that_fails_leaves_nothing(
    source: Engine, target: Engine, tmp_path: Path
) -> None:
    house, path = filled(source), tmp_path / "b.gz"
    backup.write(reading(source), path, house.now)

    def fail(table: str, _done: int, _total: int) -> None:
        if table == "events":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup.restore(target, path, house.now, progress=fail)
    assert contents(target) == {}


# ---- damaged files -----------------------------------------------------------------------------


def _cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def _lines_changed(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    return lambda raw: gzip.compress(b"".join(change(gzip.decompress(raw).splitlines(True))))


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        lambda raw: b"",
        lambda raw: b"no gzip at all",
        _lines_changed(lambda lines: lines[:-1]),
        _lines_changed(lambda lines: [*lines[:5], *lines[6:]]),
        _lines_changed(lambda lines: [line.replace(b"ada", b"eve") for line in lines]),
        _lines_changed(lambda lines: lines[1:]),
    ],
)
def test_a_damaged_backup_is_refused_before_anything_is_touched(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    source = open_engine(f"sqlite:///{tmp_path / 'a.db'}")
    filled(source)
    with source.begin() as connection:
        connection.execute(update(tables.runs).values(owner="ada"))
    path = tmp_path / "b.gz"
    backup.write(reading(source), path, House(source).now)
    path.write_bytes(damage(path.read_bytes()))
    target = open_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(backup.BackupError, match="no whole backup"):
        backup.restore(target, path, House(source).now)
    assert contents(target) == {}
    for engine in (source, target):
        engine.dispose()


def test_folders_of_attempts_after_the_backup_are_set_aside(tmp_path: Path) -> None:
    for number in (1, 2, 3, 10):
        (tmp_path / "runs" / "r1" / f"a{number}" / "checkpoints").mkdir(parents=True)
    moved = backup.set_aside(tmp_path, {"r1": 2, "r2": 0}, House(None).now)  # type: ignore[arg-type]
    assert len(moved) == 2
    left = sorted(path.name for path in (tmp_path / "runs" / "r1").iterdir())
    assert left == ["a1", "a10.before-restore-20310504T120000", "a2", f"a3{moved[0].name[3:]}"]


def test_a_backup_is_of_one_moment(source: Engine, tmp_path: Path) -> None:
    """What is written while it is made is not in it, whole or in part."""
    house, path = filled(source), tmp_path / "b.gz"
    other = open_engine(str(source.url.render_as_string(hide_password=False)))
    late = House(other, house.now, "late")

    def meanwhile(table: str, _done: int, _total: int) -> None:
        if table == "runs" and not late.seqs:
            late.seqs[0] = 1
            late.submit()

    backup.write(reading(source), path, house.now, meanwhile)
    assert late.seqs
    other.dispose()
    assert backup.check(path).rows["runs"] == 1
    target = open_engine(f"sqlite:///{tmp_path / 'other.db'}")
    backup.restore(target, path, house.now + timedelta(seconds=1))
    found = MetaData()
    found.reflect(target)
    assert len(contents(target)["runs"]) == len(contents(target)["revisions"]) == 1
    target.dispose()
