"""The migrations make exactly the tables of the code, and nobody migrates backwards by accident."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Boolean, Engine, Float, MetaData, String, Table, select, text

from orchestrator.store import migrate, tables
from orchestrator.store.engine import open_engine

NOW = datetime(2031, 1, 1, tzinfo=UTC)
VERSIONS = Path(__file__).parents[2] / "migrations" / "versions"


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = open_engine(empty_url)
    yield engine
    engine.dispose()


def test_migrations_make_the_tables_of_the_code(empty: Engine) -> None:
    migrate.upgrade(empty)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_migrations_write_the_same_schema_on_sqlite_to_the_letter(tmp_path) -> None:
    """Autogenerate sees neither a partial index's condition nor a table without row ids."""
    made = []
    for name, build in (("a", migrate.upgrade), ("b", tables.metadata.create_all)):
        engine = open_engine(f"sqlite:///{tmp_path / name}")
        build(engine)
        with engine.connect() as connection:
            found = connection.execute(
                text("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%'")
            )
            made.append({name: _lines(name, sql) for name, sql in found if sql})
        engine.dispose()
    assert made[0] == made[1]


def _lines(name: str, sql: str) -> list[str]:
    """The definition's parts in order of their text: a column added later is written last, on the
    table's first line and with its name in quotes or not."""
    parts = re.split(r",(?![^(]*\))|\n", sql.replace('"', ""))
    words = (" ".join(part.split()).removeprefix(f"CREATE TABLE {name} (") for part in parts)
    return sorted(word.rstrip(") ") for word in words if word.rstrip(") "))


def test_upgrading_again_changes_nothing(empty: Engine) -> None:
    migrate.upgrade(empty)
    with empty.begin() as connection:
        first = migrate.ensure_installation(connection, NOW)
    migrate.upgrade(empty)
    with empty.begin() as connection:
        assert migrate.ensure_installation(connection, NOW) == first
    assert len(first) == 8
    assert first.isalnum()
    assert first == first.lower()


def test_control_planes_that_start_together_migrate_once(empty: Engine, empty_url: str) -> None:
    found: list[str] = []
    failed: list[BaseException] = []

    def start() -> None:
        engine = open_engine(empty_url)
        try:
            migrate.upgrade(engine)
            with engine.begin() as connection:
                found.append(migrate.ensure_installation(connection, NOW))
        except BaseException as error:
            failed.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_newer_database_is_refused_and_left_alone(empty: Engine) -> None:
    migrate.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    newest = max(path.name[:4] for path in VERSIONS.glob("0*.py"))
    with pytest.raises(migrate.NewerDatabase, match=rf"revision 9999.*newer than {newest}"):
        migrate.upgrade(empty)
    with empty.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


def test_foreign_keys_hold_again_after_an_upgrade(tmp_path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'x.db'}")
    migrate.upgrade(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    engine.dispose()


def test_a_step_back_and_forth_keeps_every_row_of_the_first_revision(empty: Engine) -> None:
    migrate.upgrade(empty)
    with empty.begin() as connection:
        command.downgrade(migrate.config(connection), "0001")
    seed_first(empty)
    before = contents(empty)
    migrate.upgrade(empty)
    with empty.begin() as connection:
        claimed = connection.execute(text("SELECT scope, slot FROM claims ORDER BY scope, slot"))
        assert [tuple(row) for row in claimed] == [
            ("owner:ada", 1),
            ("owner:ada", 2),
            ("provider:local", 1),
            ("provider:local", 2),
        ]
        assert connection.scalar(text("SELECT queued_at FROM runs WHERE id = 'r2'")) == 7
    with migrate.locked(empty) as connection:  # foreign keys are loose there, as in an upgrade
        command.downgrade(migrate.config(connection), "0001")
    assert contents(empty) == before
    migrate.upgrade(empty)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def seed_first(engine: Engine) -> None:
    """One row, at least, in every table of the first revision."""
    found = MetaData()
    with engine.begin() as connection:
        found.reflect(connection)
        for table in found.sorted_tables:
            if table.name == "alembic_version":
                continue
            connection.execute(table.insert().values(_row(table)))
        first = connection.execute(select(found.tables["runs"])).mappings().one()
        again = {"id": "r2", "name": "r2", "state": "queued"}
        connection.execute(found.tables["runs"].insert().values({**first, **again}))


GIVEN: dict[str, object] = {
    "run_id": "r1",
    "owner": "ada",
    "provider": "local",
    "hosts": 2,
    "number": 1,
    "attempt": 1,
    "group": "g1",
    "body": "ünïcode \n \U0001f600",
}


def _row(table: Table) -> dict[str, object]:
    row: dict[str, object] = {}
    for column in table.columns:
        if column.name in GIVEN:
            row[column.name] = GIVEN[column.name]
        elif table.name == "runs" and column.name in ("id", "name"):
            row[column.name] = "r1"
        elif table.name == "host_groups" and column.name == "name":
            row[column.name] = "g1"
        elif isinstance(column.type, String):
            row[column.name] = "x"
        elif isinstance(column.type, Boolean):
            row[column.name] = True
        elif isinstance(column.type, Float):
            row[column.name] = 0.1
        else:
            row[column.name] = 7
    return row


def contents(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    found = MetaData()
    with engine.connect() as connection:
        found.reflect(connection)
        return {
            name: sorted(tuple(row) for row in connection.execute(select(table)))
            for name, table in found.tables.items()
        }
