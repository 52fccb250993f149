"""Many rows at once, past the ORM-free layer's per-value work: what ingest spends its time on.

Owns the two statements that are fastest here: `executemany` on SQLite, one `INSERT … SELECT FROM
unnest` on PostgreSQL, where each execution would be a message of its own. Values are what the
driver takes: an instant is its microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache

from sqlalchemy import Connection, Dialect, Table

from orchestrator.store.tables import EPOCH

Cell = str | int | float | None
MICROSECOND = timedelta(microseconds=1)


def micros(instant: datetime) -> int:
    """As `tables.Instant` keeps it."""
    return (instant - EPOCH) // MICROSECOND


def insert_rows(
    connection: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Cell, ...]]
) -> None:
    """Inserts `rows` in their order; a row whose key exists already is left out."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        arrays = tuple(list(column) for column in zip(*rows, strict=True))
        connection.exec_driver_sql(_from_arrays(table, columns, connection.dialect), arrays)
    else:
        connection.exec_driver_sql(_one_by_one(table, columns), list(rows))


@cache
def _one_by_one(table: Table, columns: tuple[str, ...]) -> str:
    marks = ", ".join("?" * len(columns))
    names = ", ".join(columns)
    return f"INSERT INTO {table.name} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608


@cache
def _from_arrays(table: Table, columns: tuple[str, ...], dialect: Dialect) -> str:
    types = [table.c[name].type.compile(dialect) for name in columns]
    arrays = ", ".join(f"%s::{kind}[]" for kind in types)
    names = ", ".join(columns)
    return (
        f"INSERT INTO {table.name} ({names}) SELECT {names}"  # noqa: S608
        f" FROM unnest({arrays}) WITH ORDINALITY AS given({names}, place)"
        " ORDER BY place ON CONFLICT DO NOTHING"
    )
