"""Many rows at once, past the ORM-free layer's per-value work: what ingest spends its time on.

Owns the two statements that are fastest here: `executemany` of some rows at once on SQLite, one
`INSERT … SELECT FROM unnest` on PostgreSQL, where each execution would be a message of its own.
Values are what the driver takes: an instant is its microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from itertools import chain

from sqlalchemy import Connection, Dialect, String, Table

from orchestrator.store.tables import EPOCH

Cell = str | int | float | None
# SQLite's driver lets go of the interpreter for each execution and has to wait for it again. More
# rows are no faster, and old versions take no more than 999 values.
ROWS_A_STATEMENT = 50


def micros(instant: datetime) -> int:
    """As `tables.Instant` keeps it."""
    span = instant - EPOCH
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def insert_rows(
    connection: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Cell, ...]]
) -> None:
    """Inserts `rows` in their order; a row whose key exists already is left out."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        texts = (isinstance(table.c[name].type, String) for name in columns)
        arrays = tuple(map(_array, zip(*rows, strict=True), texts))
        connection.exec_driver_sql(_from_arrays(table, columns, connection.dialect), arrays)
        return
    whole = len(rows) // ROWS_A_STATEMENT * ROWS_A_STATEMENT
    for number, some in ((ROWS_A_STATEMENT, rows[:whole]), (1, rows[whole:])):
        if some:
            flat = [
                tuple(chain.from_iterable(some[start : start + number]))
                for start in range(0, len(some), number)
            ]
            connection.exec_driver_sql(_with_values(table, columns, number), flat)


def _array(column: tuple[Cell, ...], text: bool) -> str:
    """As PostgreSQL writes an array, each number as exact as it was. The driver would look at each
    value by itself, in Python."""
    if text:
        return "{" + ",".join(map(_element, column)) + "}"
    return "{" + repr(list(column))[1:-1].replace("None", "NULL") + "}"


def _element(value: Cell) -> str:
    if value is None:
        return "NULL"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


@cache
def _with_values(table: Table, columns: tuple[str, ...], rows: int) -> str:
    marks = ", ".join(["(" + ", ".join("?" * len(columns)) + ")"] * rows)
    names = ", ".join(columns)
    return f"INSERT INTO {table.name} ({names}) VALUES {marks} ON CONFLICT DO NOTHING"  # noqa: S608


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
