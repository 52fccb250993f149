"""Where checkpoints lie: a folder of a disk or a prefix of a bucket, behind one small door.

Owns our own small files there, what is known of the others' contents, and their removal. The arrays
themselves are Orbax's matter. A bucket is spoken to with Application Default Credentials alone, and
each call ends: after `PATIENCE_SECONDS` it is an OSError. Must not import JAX.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from worker.ends import Invalid, StorageFailed

BUCKETS = "gs://"
DRAFT = ".draft"  # a crash may leave one of these behind; it never counts
CHUNK = 1 << 20


class FileRecord(BaseModel):
    """A file's size, and what proves its content: a hash of ours, or a bucket's own checksum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str | None = Field(default=None, exclude_if=lambda given: given is None)
    crc32c: str | None = Field(default=None, exclude_if=lambda given: given is None)


class OutOfReach(OSError):
    """The storage refuses or does not answer, which says nothing of what lies there."""


class Folder(Protocol):
    """Names are relative, with forward slashes. What cannot be done is an OSError."""

    uri: str

    def make(self) -> None:
        """Empty, whatever lay there before."""
        ...

    def holds(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: str | bytes) -> None:
        """Whole or not at all, and to stay."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """A file of plain text in place of the one before, and the folder where it is missing.

        Whole or not at all; a power cut may undo it.
        """
        ...

    def names(self) -> list[str]:
        """Of every file in it, at any depth."""
        ...

    def size(self, name: str) -> int: ...

    def measure(self, name: str) -> FileRecord:
        """Of a file as it lies there now; on a disk it is to stay once this returns."""
        ...

    def agrees(self, name: str, recorded: FileRecord) -> bool:
        """Whether the content is the one that was recorded, here or in another place."""
        ...

    def settle(self) -> None:
        """What was written is found there after a power cut."""
        ...

    def remove(self, first: Sequence[str]) -> None:
        """All of it, but these names before the rest. What is gone already was removed."""
        ...


def in_bucket(uri: str | PurePath) -> bool:
    return str(uri).startswith(BUCKETS)


def place_of(uri: str) -> PurePath:
    """A path to take parts of; a bucket's keeps its two slashes when it is spelled."""
    if in_bucket(uri):
        from etils import epath

        return epath.Path(uri)
    return Path(uri)


def folder_at(uri: str | PurePath) -> Folder:
    """Raises Invalid where a bucket is named and its client is not installed."""
    if in_bucket(uri):
        from worker.bucket import BucketFolder

        return BucketFolder(str(uri))
    return LocalFolder(Path(uri))


def refuse_unusable(storage: str) -> None:
    """Raises Invalid for a storage that can never work on this host.

    And StorageFailed where a bucket cannot be spoken to as things stand.
    """
    if in_bucket(storage):
        try:
            folder_at(storage)
        except OutOfReach as error:
            raise StorageFailed(str(error.strerror)) from error
    elif not Path(storage).is_absolute():
        raise Invalid(
            f"the storage {storage} is neither an absolute path nor a gs:// address",
            field="/storage",
            hint="Set the service's storage to a folder that every host of the run can write.",
        )


class LocalFolder:
    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        self._path = path

    def make(self) -> None:
        if self._path.exists():
            shutil.rmtree(self._path)
        self._path.mkdir(parents=True)

    def holds(self, name: str) -> bool:
        return (self._path / name).exists()

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def write(self, name: str, content: str | bytes) -> None:
        write_atomically(self._path / name, content)

    def put(self, name: str, content: bytes) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}{DRAFT}")
        draft.write_bytes(content)
        draft.rename(path)

    def names(self) -> list[str]:
        found = (path for path in self._path.rglob("*") if path.is_file())
        return sorted(path.relative_to(self._path).as_posix() for path in found)

    def size(self, name: str) -> int:
        return (self._path / name).stat().st_size

    def measure(self, name: str) -> FileRecord:
        return _measured(self._path / name, sync=True)

    def agrees(self, name: str, recorded: FileRecord) -> bool:
        if recorded.sha256 is None:  # it was recorded in a bucket
            return crc32c((self._path / name).read_bytes()) == recorded.crc32c
        return _measured(self._path / name, sync=False).sha256 == recorded.sha256

    def settle(self) -> None:
        for path in sorted(self._path.rglob("*")):
            if path.is_dir():
                sync_folder(path)
        sync_folder(self._path.parent)

    def remove(self, first: Sequence[str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            for name in first:
                (self._path / name).unlink(missing_ok=True)
            sync_folder(self._path)
            shutil.rmtree(self._path)
            sync_folder(self._path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file appears whole or not at all, and survives a power cut once this returns."""
    draft = path.with_name(f"{path.name}{DRAFT}")
    with draft.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32c(content: bytes) -> str:
    """As a bucket spells it."""
    import base64

    try:
        import google_crc32c
    except ImportError as error:
        words = "its checksums are a bucket's: install longhaul[gcp] to compare them"
        raise OSError(0, words) from error
    return base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()


def _measured(path: Path, *, sync: bool) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size=size, sha256=digest.hexdigest())
