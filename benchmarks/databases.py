"""Databases of a benchmark's own, each in a folder that is removed at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from orchestrator.store.engine import open_engine

SQLITE, POSTGRESQL = "sqlite", "postgresql"


def postgres_binaries() -> Path | None:
    """The folder of the newest PostgreSQL server here; None without any."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    path = str(found[-1]) if found else shutil.which("postgres")
    return None if path is None else Path(path).parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL, without a database, of a new cluster; it syncs each commit."""
    binaries = postgres_binaries()
    assert binaries is not None, "PostgreSQL's server program is not installed"
    run_as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # root it refuses
    folder, port = Path(tempfile.mkdtemp(prefix="longhaul-bench-")), free_port()
    if run_as:
        shutil.chown(folder, "postgres")
    data, log = str(folder / "data"), str(folder / "log")
    control = [*run_as, str(binaries / "pg_ctl"), "-D", data, "-w"]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -k {folder}"
    initdb = [str(binaries / "initdb"), "-D", data, "-U", "postgres", "-A", "trust"]
    try:
        subprocess.run([*run_as, *initdb, "--locale=C", "--encoding=UTF8"], **quiet)
        subprocess.run([*control, "-l", log, "-o", options, "start"], **quiet)
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    finally:
        shutil.rmtree(folder)


def new_database(server: str, name: str) -> str:
    admin = open_engine(f"{server}/postgres")
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return f"{server}/{name}"


def size_of(url: str, table: str) -> int:
    """Bytes on disk: of the table with its indexes on PostgreSQL, of all pages on SQLite."""
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == POSTGRESQL:
                query = text("SELECT pg_total_relation_size(CAST(:table AS regclass))")
                return int(connection.execute(query, {"table": table}).scalar_one())
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            return int(pages) * int(connection.exec_driver_sql("PRAGMA page_size").scalar_one())
    finally:
        engine.dispose()
