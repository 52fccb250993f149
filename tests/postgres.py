"""A PostgreSQL of the tests' own: a cluster in a temporary folder, for as long as it is needed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import leftovers


def _postgres_binaries() -> Path:
    """Debian's newest, else those on the path; tests without either are skipped by their mark."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return Path(found[-1] if found else shutil.which("postgres") or "").parent


@contextmanager
def cluster() -> Iterator[str]:
    """The URL, without a database, of a cluster in a temporary folder."""
    binaries = _postgres_binaries()
    run_as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # root it refuses
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="longhaul-pg-"))
    if run_as:
        shutil.chown(folder, "postgres")
    data = str(folder / "data")
    initdb = [str(binaries / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-N"]
    settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c fsync=off -k {folder}"
    control = [*run_as, str(binaries / "pg_ctl"), "-D", data, "-w"]
    log = str(folder / "log")
    # Without the mark of the test that happens to start it: the server outlives that one.
    unmarked = {name: value for name, value in os.environ.items() if name != leftovers.MARK}
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/", "env": unmarked}
    try:
        subprocess.run([*run_as, *initdb, "--locale=C", "--encoding=UTF8"], **quiet)
        subprocess.run([*control, "-l", log, "-o", settings, "start"], **quiet)
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    finally:
        shutil.rmtree(folder)
