"""Brings the database to the shape of `tables.py`, once, whoever starts first.

Owns the lock around migrations and the installation's id. The revisions themselves lie in the
`migrations` package, found through its installed place, so that a wheel needs no extra file.
"""

from __future__ import annotations

import secrets
import sqlite3
import string
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, insert, select, text

import migrations
from orchestrator.store.tables import installation

ADVISORY_LOCK = 7_301_948_215  # any constant number that nobody else uses in this database
ID_ALPHABET = string.ascii_lowercase + string.digits
ID_LENGTH = 8


class NewerDatabase(Exception):
    """The database was made by a newer Longhaul than this one."""

    def __init__(self, found: str, newest: str | None) -> None:
        super().__init__(
            f"the database is at revision {found}, but this Longhaul knows none newer than"
            f" {newest}; install the version that ran last, or restore a backup from before it"
        )


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, made in memory."""
    made = Config()
    folder = Path(migrations.__file__ or "").resolve().parent
    made.set_main_option("script_location", str(folder).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def upgrade(engine: Engine) -> None:
    """Applies what is missing, in one transaction under a lock.

    Raises `NewerDatabase` before anything is touched when the database has a revision that this
    code does not know.
    """
    with locked(engine) as connection:
        made = config(connection)
        _refuse_newer(connection, ScriptDirectory.from_config(made))
        command.upgrade(made, "head")


def ensure_installation(connection: Connection, now: datetime) -> str:
    """The id of this installation, made at its first start; it names every resource it owns."""
    _lock(connection)
    found = connection.scalar(select(installation.c.id))
    if found is not None:
        return found
    made = "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_LENGTH))
    connection.execute(insert(installation).values(id=made, created_at=now))
    return made


@contextmanager
def locked(engine: Engine) -> Generator[Connection]:
    """One transaction that nobody else migrates beside; foreign keys are not enforced in it."""
    with engine.connect() as connection, _loose_foreign_keys(connection), connection.begin():
        _lock(connection)
        yield connection


def _lock(connection: Connection) -> None:
    """Until the transaction ends; on SQLite its BEGIN IMMEDIATE is the lock."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})


@contextmanager
def _loose_foreign_keys(connection: Connection) -> Generator[None]:
    """SQLite alters a table by copying and dropping it, which would cascade into its children."""
    raw = connection.connection.dbapi_connection
    if not isinstance(raw, sqlite3.Connection):
        yield
        return
    raw.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        raw.execute("PRAGMA foreign_keys = ON")


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    for head in MigrationContext.configure(connection).get_current_heads():
        try:
            scripts.get_revision(head)
        except CommandError:
            raise NewerDatabase(head, scripts.get_current_head()) from None


def newest() -> str | None:
    """The revision that this code makes."""
    return ScriptDirectory.from_config(config()).get_current_head()
