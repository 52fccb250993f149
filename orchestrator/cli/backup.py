"""`backup` and `restore`: the whole database as one file, into either kind of database."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import CommandFailed, DataDir
from orchestrator.cli.service import read_settings

if TYPE_CHECKING:
    from orchestrator.settings import Settings

BackupFile = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]


def backup(file: BackupFile, data: DataDir = None) -> None:
    """Write the whole database to FILE; the service may go on meanwhile. Files of runs stay."""
    from orchestrator.store import backup as backups
    from orchestrator.store.engine import open_engine, reading

    settings = read_settings(data_dir=data)
    if file.exists():
        raise CommandFailed(f"{file} exists already.", "Choose another name, or remove it first.")
    _refuse_nothing(settings)
    with _words(settings, file), _bar("Backing up") as progress:
        engine = open_engine(settings.database)
        try:
            header = backups.write(reading(engine), file.absolute(), datetime.now(UTC), progress)
        finally:
            engine.dispose()
    typer.echo(f"{header.total:,} rows of installation {header.installation} are in {file}")


def restore(
    file: BackupFile,
    force: Annotated[
        bool, typer.Option("--force", help="Lose what the database holds now.")
    ] = False,
    data: DataDir = None,
) -> None:
    """Fill an empty database from FILE, with the service stopped. Works across databases."""
    from orchestrator.instance import CannotStart, claimed
    from orchestrator.store import backup as backups
    from orchestrator.store.engine import open_engine

    settings, now = read_settings(data_dir=data), datetime.now(UTC)
    try:
        with claimed(settings), _words(settings, file), _bar("Restoring") as progress:
            engine = open_engine(settings.database)
            try:
                header = backups.restore(engine, file, now, force=force, progress=progress)
                with engine.connect() as connection:
                    newest = backups.newest_attempts(connection)
            finally:
                engine.dispose()
            folder = settings.storage_folder
            moved = [] if folder is None else backups.set_aside(folder, newest, now)
    except CannotStart as error:
        raise CommandFailed(str(error)) from error
    typer.echo(f"{header.total:,} rows of {header.made_at:%Y-%m-%d %H:%M:%S} UTC are restored")
    for folder in moved:
        typer.echo(f"set aside, from after the backup: {folder}")
    typer.echo("→ Start the service, then look at: longhaul orphans")


def _refuse_nothing(settings: Settings) -> None:
    """SQLite would make an empty file where there is none."""
    database = settings.data_dir / "longhaul.db"
    if settings.database_url is None and not database.exists():
        raise CommandFailed(f"There is no database at {database}.", "Name the folder with --data.")


@contextmanager
def _words(settings: Settings, file: Path) -> Generator[None]:
    from orchestrator.cli.database import told
    from orchestrator.store.backup import BackupError

    try:
        with told(settings):
            yield
    except BackupError as error:
        words = str(error)
        # A file's name stays as it is at the start of a sentence.
        first = words[0] if words.startswith(str(file)) else words[0].upper()
        raise CommandFailed(f"{first}{words[1:]}.", error.hint) from error


@contextmanager
def _bar(doing: str) -> Generator[Callable[[str, int, int], None]]:
    """On a terminal only; nothing of it stays."""
    from rich.progress import Progress

    from orchestrator.cli import render

    out = render.console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as shown:
        task = shown.add_task(doing, total=None)

        def progress(table: str, done: int, total: int) -> None:
            shown.update(task, completed=done, total=total, description=f"{doing} {table}")

        yield progress
