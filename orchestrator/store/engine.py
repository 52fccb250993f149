"""Opens the database the way that Longhaul needs it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_TIMEOUT_MS = 10_000


class TransactionLost(Exception):
    """The database ended the transaction by itself, as a rule because its disk is full."""


def open_engine(url: str, stalled_after: float | None = None) -> Engine:
    """An engine for `sqlite:///…` or `postgresql+psycopg://…`.

    PostgreSQL ends a writing transaction in which nothing happens for `stalled_after` seconds: a
    leader that is stopped in the middle of one would hold the lease's row, and nobody could follow.

    On SQLite, transactions begin immediately: with the driver's own lazy transactions, two
    processes that read and then write lose updates without any error.
    """
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_engine(url, pool_size=8, max_overflow=8, pool_pre_ping=True)
        if stalled_after is not None:
            event.listen(engine, "begin", _end_when_stalled(stalled_after))
        return engine
    engine = create_engine(url, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    event.listen(engine, "savepoint", _on_savepoint)
    event.listen(engine, "commit", _refuse_lost)
    return engine


def _end_when_stalled(seconds: float) -> Callable[[Connection], None]:
    limit = f"SET LOCAL idle_in_transaction_session_timeout = {max(1, round(seconds * 1000))}"

    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("read_only", False):
            connection.exec_driver_sql(limit)

    return begin


def _on_connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    assert isinstance(connection, sqlite3.Connection)
    connection.isolation_level = None
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _on_savepoint(connection: Connection, _name: str | None) -> None:
    _refuse_lost(connection)


def _refuse_lost(connection: Connection) -> None:
    """SQLite takes a whole transaction back by itself where a statement finds the disk full.

    Without this look the driver would commit nothing and say that all is well, and a savepoint
    would begin a transaction of its own.
    """
    raw = connection.connection.dbapi_connection
    if isinstance(raw, sqlite3.Connection) and not raw.in_transaction:
        raise TransactionLost("the database took the transaction back; nothing of it is stored")


def reading(engine: Engine) -> Engine:
    """The same database for reads alone: one unchanging snapshot a transaction, without locks."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True, read_only=True
        )
    return engine.execution_options(read_only=True)
