"""The proof beside a checkpoint: every file's size and hash, every array's digest, the marker last.

A checkpoint's folder holds `state/` (the arrays, as Orbax writes them), `loop.json` (where the
loop stood), `manifest.json`, `COMMITTED` (the manifest's hash; without it nothing here counts) and,
once the control plane took it, `accepted.json`. Must not import JAX.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.ends import CheckpointUnusable
from worker.protocol import CheckpointAccepted, DataPlan

STATE, LOOP, MANIFEST = "state", "loop.json", "manifest.json"
MARKER, ACCEPTED = "COMMITTED", "accepted.json"
DRAFT = ".draft"  # a crash may leave one of these behind; it never counts
OUTSIDE_THE_PROOF = frozenset(
    name for proof in (MANIFEST, MARKER, ACCEPTED) for name in (proof, f"{proof}{DRAFT}")
)
CHUNK = 1 << 20


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(Record):
    size: int
    sha256: str


class ArrayRecord(Record):
    shape: tuple[int, ...]
    dtype: str
    digest: str


class LoopRecord(Record):
    """Where the loop stood; `next_batch` is the plan's index of the batch to come.

    `text` is the fingerprint of the tokens trained on. `losses` and `suspects` are what the rules
    that watch the loss remember (`worker.watch.Seen`); `owes_eval` where the evaluation after this
    step was given up for the sake of the save.
    """

    run_id: str
    attempt: int
    branch: int
    revision: int
    step: int
    next_batch: int
    data_plan: DataPlan
    text: str
    losses: tuple[float, ...] = ()
    suspects: tuple[tuple[int, float], ...] = ()
    owes_eval: bool = False


class Manifest(Record):
    version: Literal[1] = 1
    loop: LoopRecord
    files: Mapping[str, FileRecord]  # by path inside the folder, with forward slashes
    arrays: Mapping[str, ArrayRecord]
    state_digest: str

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files.values())


class Marker(Record):
    manifest_sha256: str


def write_atomically(path: Path, text: str) -> None:
    """The file appears whole or not at all, and survives a power cut once this returns."""
    draft = path.with_name(f"{path.name}{DRAFT}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
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


def commit(
    folder: Path,
    loop: LoopRecord,
    arrays: Mapping[str, ArrayRecord],
    state_digest: str | None = None,
) -> tuple[Manifest, str]:
    """Proves what lies in `folder` and marks it whole. Returns the manifest and its SHA-256.

    Of a state whose arrays nobody knows the digest is that of its files.
    """
    write_atomically(folder / LOOP, loop.model_dump_json(indent=1))
    files = {name: _measure(folder / name, sync=True) for name in _listing(folder)}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
    digest = state_digest or _of_files(files)
    manifest = Manifest(loop=loop, files=files, arrays=arrays, state_digest=digest)
    text = manifest.model_dump_json(indent=1)
    write_atomically(folder / MANIFEST, text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    write_atomically(folder / MARKER, Marker(manifest_sha256=sha256).model_dump_json())
    sync_folder(folder.parent)
    return manifest, sha256


def _of_files(files: Mapping[str, FileRecord]) -> str:
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        if name != LOOP:
            digest.update(f"{name}\0{file.size}\0{file.sha256}\n".encode())
    return digest.hexdigest()


def write_acceptance(folder: Path, acceptance: CheckpointAccepted) -> None:
    write_atomically(folder / ACCEPTED, acceptance.model_dump_json())


def verify(folder: Path, manifest_sha256: str) -> Manifest:
    """Reads every byte and compares. Raises CheckpointUnusable with the first difference."""
    manifest = proven_manifest(folder, manifest_sha256)
    verify_files(folder, manifest)
    return manifest


def proven_manifest(folder: Path, manifest_sha256: str) -> Manifest:
    """The manifest, where it is the very one that was marked. Raises CheckpointUnusable."""
    marker = _read(folder, MARKER)
    try:
        marked = Marker.model_validate_json(marker).manifest_sha256
    except ValidationError as error:
        raise CheckpointUnusable(f"{MARKER} is not a marker: {error}") from error
    text = _read(folder, MANIFEST)
    found = hashlib.sha256(text).hexdigest()
    if found != marked:
        raise CheckpointUnusable(f"{MANIFEST} is not the one that {MARKER} names")
    if found != manifest_sha256:
        raise CheckpointUnusable(f"{MANIFEST} has hash {found}, the ledger says {manifest_sha256}")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointUnusable(f"{MANIFEST} cannot be read: {error}") from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Reads every byte of every file. Raises CheckpointUnusable with the first difference."""
    for name, recorded in manifest.files.items():
        _compare(folder, name, recorded)
    if extra := set(_listing(folder)) - set(manifest.files):
        raise CheckpointUnusable(f"{min(extra)} is not in the manifest")


def _compare(folder: Path, name: str, recorded: FileRecord) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise CheckpointUnusable(f"the manifest names {name}, outside the checkpoint")
    try:
        size = (folder / name).stat().st_size
        if size != recorded.size:
            raise CheckpointUnusable(f"{name} has {size} bytes, not {recorded.size}")
        if _measure(folder / name, sync=False) != recorded:
            raise CheckpointUnusable(f"{name} has other content than was written")
    except FileNotFoundError as error:
        raise CheckpointUnusable(f"{name} is missing") from error
    except OSError as error:
        raise CheckpointUnusable(f"{name} cannot be read: {error.strerror}") from error


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointUnusable(f"{name} is missing") from error
    except OSError as error:
        raise CheckpointUnusable(f"{name} cannot be read: {error.strerror}") from error


def _listing(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in OUTSIDE_THE_PROOF)


def _measure(path: Path, *, sync: bool) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size=size, sha256=digest.hexdigest())
