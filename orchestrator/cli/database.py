"""What a person reads where the database that the settings name can not be used."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.cli.options import CommandFailed

if TYPE_CHECKING:
    from orchestrator.settings import Settings

FORM = "postgresql+psycopg://USER@HOST:PORT/NAME"
KINDS = ("postgresql", "sqlite")


def refuse_unusable(settings: Settings) -> None:
    """Connects once. The SQLite file of the data folder is left to the service, which makes it."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from orchestrator.store.engine import open_engine

    if settings.database_url is None:
        return
    with told(settings):
        if make_url(settings.database).get_backend_name() not in KINDS:
            raise ArgumentError(settings.database)
        engine = open_engine(settings.database)
        try:
            with engine.connect():
                pass
        finally:
            engine.dispose()


@contextmanager
def told(settings: Settings) -> Generator[None]:
    """Failures of the database as sentences, without the statements and the traceback."""
    from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

    where = masked(settings.database)
    hint = f"Check LONGHAUL_DATABASE_URL ({FORM}), and whether the database runs."
    try:
        yield
    except DatabaseError as error:
        reason = str(error.orig).strip().partition("\n")[0].rstrip(".")
        raise CommandFailed(f"The database {where} can not be used: {reason}.", hint) from error
    except (ArgumentError, NoSuchModuleError) as error:
        hint = f"Write LONGHAUL_DATABASE_URL as {FORM}, or leave it out for SQLite."
        raise CommandFailed(f"{where} is no database that is known here.", hint) from error
    except ModuleNotFoundError as error:
        what = f"The database {where} needs {error.name}, which is not installed here."
        hint = "Install it with: pip install 'longhaul[postgres]'"
        raise CommandFailed(what, hint) from error


def masked(url: str) -> str:
    """A database address without its password."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":…@") if password else url
