"""A backup: every row of one unchanging snapshot in one file, for either kind of database.

Owns the file's form: gzip over lines of JSON. The first names the schema's revision and the
installation; then comes each table with its columns, followed by its rows as arrays; the last line
has the number of rows of each table and the SHA-256 of all lines before it. Values are as the
columns hold them, so a backup of SQLite can be restored into PostgreSQL, and back; bytes are
objects with their base64.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, cast

from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    Connection,
    Engine,
    MetaData,
    Table,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
    type_coerce,
    update,
)

from orchestrator.durable import sync_folder
from orchestrator.store import migrate
from orchestrator.store.lease import DatabaseNow
from orchestrator.store.tables import (
    Instant,
    attempts,
    installation,
    leases,
    login_codes,
    runs,
    sessions,
)

FORMAT = "longhaul-backup"
VERSION = 1
VERSION_TABLE = "alembic_version"
ROWS_AT_ONCE = 1000
BYTES = "base64"

Progress = Callable[[str, int, int], None]  # table, rows done, rows in all


class BackupError(Exception):
    """The backup can not be made or used; the message says why, `hint` what to do."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


@dataclass(frozen=True)
class Header:
    """What a backup is of. `rows` is the number in each table."""

    revision: str
    installation: str | None
    made_at: datetime
    rows: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def _quiet(_table: str, _done: int, _total: int) -> None:
    pass


# ---- out ---------------------------------------------------------------------------------------


def write(read: Engine, path: Path, now: datetime, progress: Progress = _quiet) -> Header:
    """Writes the whole database as it is at one moment; the service may go on meanwhile.

    The file appears whole, for its owner alone. `read` is the engine for reads (`engine.reading`).
    """
    draft = path.with_name(path.name + ".new")
    try:
        with read.begin() as connection:
            found = MetaData()
            found.reflect(connection)
            header = _header(connection, found, now)
            with _writing(draft) as file:
                _write_all(connection, found, header, file, progress)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        hint = "Choose a folder that can be written and has room."
        raise BackupError(f"{path} can not be written: {error.strerror}", hint) from error
    finally:
        draft.unlink(missing_ok=True)
    return header


def _header(connection: Connection, found: MetaData, now: datetime) -> Header:
    if VERSION_TABLE not in found.tables:
        hint = "Name the right one with --data or LONGHAUL_DATABASE_URL."
        raise BackupError("there is no database of Longhaul here", hint)
    [revision] = connection.scalars(select(found.tables[VERSION_TABLE].c.version_num))
    rows = {
        table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in _of_ours(found)
    }
    owner = connection.scalar(select(found.tables["installation"].c.id))
    return Header(revision, owner, now, rows)


def _of_ours(found: MetaData) -> list[Table]:
    """Parents before children."""
    return [table for table in found.sorted_tables if table.name != VERSION_TABLE]


@contextlib.contextmanager
def _writing(draft: Path) -> Generator[TextIO]:
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as raw:
        with gzip.open(raw, "wt", compresslevel=3, encoding="utf-8") as file:
            yield file
        raw.flush()
        os.fsync(raw.fileno())


def _write_all(
    connection: Connection, found: MetaData, header: Header, file: TextIO, progress: Progress
) -> None:
    digest, done = hashlib.sha256(), 0

    def put(value: object) -> None:
        line = json.dumps(value, separators=(",", ":")) + "\n"
        digest.update(line.encode())
        file.write(line)

    put(_header_line(header))
    for table in _of_ours(found):
        put({"table": table.name, "columns": [column.name for column in table.columns]})
        query = select(table).execution_options(yield_per=ROWS_AT_ONCE)
        for rows in connection.execute(query).partitions():
            for row in rows:
                put([_told(value) for value in row])
            done += len(rows)
            progress(table.name, done, header.total)
    file.write(json.dumps({"sha256": digest.hexdigest(), "rows": dict(header.rows)}) + "\n")


def _told(value: object) -> object:
    return {BYTES: base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _header_line(header: Header) -> dict[str, object]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "revision": header.revision,
        "installation": header.installation,
        "made_at": header.made_at.isoformat(),
        "rows": dict(header.rows),
    }


# ---- in ----------------------------------------------------------------------------------------


def check(path: Path) -> Header:
    """Reads the whole file once; raises `BackupError` unless it is a whole, unharmed backup."""
    digest, last, first = hashlib.sha256(), "", ""
    for line in _lines(path):
        first = first or line
        if last:
            digest.update(last.encode())
        last = line
    header, end = _parsed(first, path), _object(last)
    if end.get("sha256") != digest.hexdigest() or end.get("rows") != dict(header.rows):
        raise _broken(path, "its checksum does not fit, or its end is missing")
    return header


def restore(
    engine: Engine, path: Path, now: datetime, *, force: bool = False, progress: Progress = _quiet
) -> Header:
    """Fills an empty database from a backup, and brings it to today's schema: all or nothing.

    With `force` whatever the database holds is dropped first. Who led is forgotten, sessions end,
    and the sweep of orphans only lists until a person confirms. Raises `BackupError`.
    """
    header = check(path)
    _refuse_newer(header)
    with migrate.locked(engine) as connection:
        _refuse_served(connection)
        _make_room(connection, force)
        made = migrate.config(connection)
        command.upgrade(made, header.revision)
        _fill(connection, path, header, progress)
        command.upgrade(made, "head")
        _settle(connection, now)
    return header


def _refuse_newer(header: Header) -> None:
    scripts = ScriptDirectory.from_config(migrate.config())
    try:
        scripts.get_revision(header.revision)
    except CommandError:
        what = f"the backup has revision {header.revision}, which this Longhaul does not know"
        raise BackupError(
            what, "Restore it with the version that made it, or a newer one."
        ) from None


def _refuse_served(connection: Connection) -> None:
    """A server's database has no file to lock, but a lease that lasts tells of a leader."""
    if not inspect(connection).has_table(leases.name):
        return
    leading = connection.scalar(
        select(leases.c.owner).where(leases.c.expires_at > type_coerce(DatabaseNow(), Instant))
    )
    if leading:
        hint = "Stop every service of this database first, and wait for its lease to run out."
        raise BackupError(f"a service works on this database: {leading}", hint)


def _make_room(connection: Connection, force: bool) -> None:
    found = MetaData()
    found.reflect(connection)
    held = [
        table.name
        for table in found.sorted_tables
        if table.name not in (VERSION_TABLE, "installation", "leases")
        and connection.execute(select(table).limit(1)).first() is not None
    ]
    if held and not force:
        hint = "Restore into an empty database, or give --force to lose what is there."
        raise BackupError(f"the database is not empty: it has rows in {', '.join(held)}", hint)
    if VERSION_TABLE in found.tables:
        try:
            command.downgrade(migrate.config(connection), "base")
        except CommandError as error:
            hint = "Drop it yourself, or use the version of Longhaul that ran last."
            raise BackupError("the database is of a newer Longhaul than this one", hint) from error
    elif found.tables:
        hint = "Give Longhaul a database of its own."
        raise BackupError("the database has tables that are not Longhaul's", hint)


def _fill(connection: Connection, path: Path, header: Header, progress: Progress) -> None:
    found = MetaData()
    found.reflect(connection)
    done = 0
    for table, columns, part in _parts(path):
        rows = [dict(zip(columns, row, strict=True)) for row in part]
        connection.execute(insert(found.tables[table]), rows)
        done += len(rows)
        progress(table, done, header.total)
    for table in found.sorted_tables:
        _restart_ids(connection, table)


def _parts(path: Path) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """Table, columns, and at most `ROWS_AT_ONCE` rows."""
    name, columns, part = "", list[str](), list[list[Any]]()
    for line in _lines(path):
        value: Any = json.loads(line)
        if isinstance(value, list):
            part.append([_read(one) for one in cast(list[Any], value)])
            if len(part) == ROWS_AT_ONCE:
                yield name, columns, part
                part = []
            continue
        if part:
            yield name, columns, part
            part = []
        if "table" in value:
            name, columns = value["table"], value["columns"]


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return base64.b64decode(cast(dict[str, str], value)[BYTES])


def _restart_ids(connection: Connection, table: Table) -> None:
    """PostgreSQL counts ids apart from the rows; SQLite goes on after the highest."""
    if connection.dialect.name != "postgresql":
        return
    for column in table.primary_key.columns:
        query = text("SELECT pg_get_serial_sequence(:table, :column)")
        sequence = connection.scalar(query, {"table": table.name, "column": column.name})
        if sequence is not None:
            highest = connection.scalar(select(func.max(column)))
            if highest is not None:
                connection.execute(select(func.setval(sequence, highest)))


def _settle(connection: Connection, now: datetime) -> None:
    for table in (leases, sessions, login_codes):
        connection.execute(delete(table))
    connection.execute(update(installation).values(restored_at=now, sweep_confirmed_at=None))


# ---- lines -------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from file
    except FileNotFoundError:
        raise BackupError(f"there is no file {path}", "Name a file that backup made.") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _broken(path, str(error)) from error


def _parsed(line: str, path: Path) -> Header:
    value = _object(line)
    if value.get("format") != FORMAT:
        raise _broken(path, "it does not begin as one does")
    if value["version"] != VERSION:
        hint = "Restore it with the version of Longhaul that made it."
        raise BackupError(f"the backup has the form {value['version']}, not {VERSION}", hint)
    return Header(
        revision=value["revision"],
        installation=value["installation"],
        made_at=datetime.fromisoformat(value["made_at"]),
        rows=value["rows"],
    )


def _object(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value: Any = json.loads(line)
        if isinstance(value, dict):
            return cast(dict[str, Any], value)
    return {}


def newest_attempts(connection: Connection) -> dict[str, int]:
    """The highest number of an attempt of each run; 0 where there is none."""
    query = (
        select(runs.c.id, func.coalesce(func.max(attempts.c.number), 0).label("newest"))
        .join(attempts, attempts.c.run_id == runs.c.id, isouter=True)
        .group_by(runs.c.id)
    )
    return {row.id: row.newest for row in connection.execute(query)}


def set_aside(storage_root: Path, newest: Mapping[str, int], now: datetime) -> list[Path]:
    """Renames the folders of attempts that came after the backup; nothing in them is lost.

    A restored run numbers its next attempts from where the backup knows them, and each must write
    to a folder of its own.
    """
    moved: list[Path] = []
    for run_id, last in newest.items():
        for folder in sorted((storage_root / "runs" / run_id).glob("a*")):
            number = folder.name[1:]
            if number.isdigit() and int(number) > last:
                aside = folder.with_name(f"{folder.name}.before-restore-{now:%Y%m%dT%H%M%S}")
                moved.append(folder.rename(aside))
    return moved


def _broken(path: Path, why: str) -> BackupError:
    return BackupError(f"{path} is no whole backup: {why}", "Take another copy of it.")
