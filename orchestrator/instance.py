"""One service per data folder: its lock, its port, and the note that tells others where it is.

Owns `service.lock`, `port` and `service.json` in the data folder. Must not import the API, the
store or the loop.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import ssl
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sqlalchemy.engine import make_url

from orchestrator import storage
from orchestrator.settings import Settings

LOCK_FILE = "service.lock"
PORT_FILE = "port"
NOTE_FILE = "service.json"
BACKLOG = 2048


class CannotStart(Exception):
    """The service can not start; the message says why and what to do."""


class AlreadyRunning(CannotStart):
    """Another service works on the same data folder or database file."""


@contextmanager
def claimed(settings: Settings) -> Generator[None]:
    """Makes the data folder and holds it; raises `AlreadyRunning` where another service does.

    The kernel lets go of the lock when its holder dies, however it dies.
    """
    folder = settings.data_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise CannotStart(
            f"The data folder {folder} can not be made or used: {error.strerror}."
            " Choose another one with --data."
        ) from error
    with ExitStack() as stack:
        for path in _locks(settings):
            stack.enter_context(_locked(path, settings))
        yield


def _locks(settings: Settings) -> list[Path]:
    """The folder's lock, and the database file's where that lies elsewhere."""
    locks = [settings.data_dir / LOCK_FILE]
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database:
        database = Path(url.database).absolute()
        if database.parent != settings.data_dir:
            locks.append(database.with_name(database.name + ".lock"))
    return locks


@contextmanager
def _locked(path: Path, settings: Settings) -> Generator[None]:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(f"{path} can not be opened: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"A service already works on {path.parent}{_where(settings)}."
                " Stop it first, or give this one another folder with --data."
            ) from None
        yield
    finally:
        os.close(handle)


def _where(settings: Settings) -> str:
    try:
        note = json.loads((settings.data_dir / NOTE_FILE).read_text())
        return f" (process {int(note['pid'])}, {note['url']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def bound(settings: Settings) -> socket.socket:
    """A listening socket; with port 0 the one of last time, so that agents find the service again.

    Raises `CannotStart` when the address can not be had.
    """
    last = 0
    if settings.port == 0:
        with suppress(OSError, ValueError):
            last = int((settings.data_dir / PORT_FILE).read_text())
    try:
        listening = _listen(settings.host, settings.port or last)
    except OSError as error:
        if not last or error.errno != errno.EADDRINUSE:
            raise _no_address(settings, error) from error
        listening = _listen(settings.host, 0)
    write_whole(settings.data_dir / PORT_FILE, f"{listening.getsockname()[1]}\n")
    return listening


def check_tls(settings: Settings) -> None:
    """Raises `CannotStart` where the certificate and its key can not be used together."""
    if settings.tls_certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            settings.tls_certificate, settings.tls_key, password=_no_password
        )
    except OSError as error:  # ssl.SSLError is one
        raise CannotStart(
            f"tls_certificate {settings.tls_certificate} and tls_key {settings.tls_key} can not be"
            f" used: {error.strerror or type(error).__name__}. Both are PEM files without password."
        ) from error


def check_storage(settings: Settings) -> None:
    """Raises `CannotStart` where the storage is in a bucket that nothing here can speak to."""
    refused = storage.refusal(settings.storage_root)
    if refused is not None:
        raise CannotStart(f"{refused.detail} {refused.hint}")


def _no_password() -> str:
    return ""


def _no_address(settings: Settings, error: OSError) -> CannotStart:
    if error.errno == errno.EADDRINUSE:
        return CannotStart(
            f"Port {settings.port} of {settings.host} is in use by another program."
            " Choose another one with --port; --port 0 takes any free one."
        )
    return CannotStart(
        f"{settings.host} port {settings.port} can not be listened on: {error.strerror}."
        " Choose another address with --host or --port."
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


@contextmanager
def noted(settings: Settings, version: str, started_at: datetime) -> Generator[None]:
    """`service.json` stands while the service serves."""
    path = settings.data_dir / NOTE_FILE
    note = {
        "url": settings.url,
        "pid": os.getpid(),
        "version": version,
        "started_at": started_at.isoformat(),
    }
    write_whole(path, json.dumps(note) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """The file has the old text or the new one, at any instant, and through a power cut."""
    draft = path.with_name(path.name + ".new")
    with draft.open("w") as file:
        draft.chmod(0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
