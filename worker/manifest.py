"""The proof beside a checkpoint: every file's size and hash, every array's digest, the marker last.

A checkpoint's folder holds `state/` (the arrays, as Orbax writes them), `loop.json` (where the
loop stood), `manifest.json`, `COMMITTED` (the manifest's hash; without it nothing here counts) and,
once the control plane took it, `accepted.json`. The folder may be a disk's or a bucket's. Must not
import JAX.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.ends import CheckpointUnusable
from worker.protocol import AttemptSpec, CheckpointAccepted, DataPlan
from worker.storage import DRAFT, FileRecord, Folder, OutOfReach, folder_at, in_bucket

STATE, LOOP, MANIFEST = "state", "loop.json", "manifest.json"
MARKER, ACCEPTED = "COMMITTED", "accepted.json"
ORDER = "attempt.json"  # in the attempt's own folder
OUTSIDE_THE_PROOF = frozenset(
    name for proof in (MANIFEST, MARKER, ACCEPTED) for name in (proof, f"{proof}{DRAFT}")
)


class Abandoned(Exception):
    """Nobody waits for this checkpoint any more: it was not marked whole."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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


def commit(
    place: str | PurePath,
    loop: LoopRecord,
    arrays: Mapping[str, ArrayRecord],
    state_digest: str | None = None,
    may_mark: Callable[[], bool] = lambda: True,
) -> tuple[Manifest, str]:
    """Proves what lies there and marks it whole. Returns the manifest and its SHA-256.

    Of a state whose arrays nobody knows the digest is that of its files. Raises Abandoned where
    `may_mark`, asked when all but the marker is written, says no.
    """
    folder = folder_at(place)
    folder.write(LOOP, loop.model_dump_json(indent=1))
    files = {name: folder.measure(name) for name in _listing(folder)}
    digest = state_digest or _of_files(files)
    manifest = Manifest(loop=loop, files=files, arrays=arrays, state_digest=digest)
    text = manifest.model_dump_json(indent=1)
    folder.settle()
    folder.write(MANIFEST, text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    if not may_mark():
        raise Abandoned
    folder.write(MARKER, Marker(manifest_sha256=sha256).model_dump_json())
    return manifest, sha256


def _of_files(files: Mapping[str, FileRecord]) -> str:
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        if name != LOOP:
            digest.update(f"{name}\0{file.size}\0{file.sha256 or file.crc32c}\n".encode())
    return digest.hexdigest()


def write_order(spec: AttemptSpec) -> None:
    """Leaves beside the attempt's checkpoints what it was told: with it they can be imported.

    Each checkpoint needs it, so it is there before the first of them is marked whole. Raises
    OSError.
    """
    if not in_bucket(spec.storage):
        Path(spec.storage).mkdir(parents=True, exist_ok=True)
    folder, text = folder_at(spec.storage), spec.model_dump_json(indent=1)
    if not (folder.holds(ORDER) and folder.read(ORDER) == text.encode()):
        folder.write(ORDER, text)


def write_acceptance(place: str | PurePath, acceptance: CheckpointAccepted) -> None:
    folder_at(place).write(ACCEPTED, acceptance.model_dump_json())


def verify(place: str | PurePath, manifest_sha256: str) -> Manifest:
    """Compares the whole checkpoint. Raises CheckpointUnusable with the first difference.

    And OutOfReach where a bucket could not be asked.
    """
    manifest = proven_manifest(place, manifest_sha256)
    verify_files(place, manifest)
    return manifest


def proven_manifest(place: str | PurePath, manifest_sha256: str) -> Manifest:
    """The manifest, where it is the very one that was marked. Raises as `verify`."""
    folder = folder_at(place)
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


def verify_files(place: str | PurePath, manifest: Manifest) -> None:
    """Compares every file: those of a disk byte by byte, those of a bucket by its own checksums.

    Raises as `verify`.
    """
    folder = folder_at(place)
    for name, recorded in manifest.files.items():
        _compare(folder, name, recorded)
    if extra := set(_listing(folder)) - set(manifest.files):
        raise CheckpointUnusable(f"{min(extra)} is not in the manifest")


def _compare(folder: Folder, name: str, recorded: FileRecord) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise CheckpointUnusable(f"the manifest names {name}, outside the checkpoint")
    if recorded.sha256 is None and recorded.crc32c is None:
        raise CheckpointUnusable(f"the manifest has no proof of {name}")
    try:
        size = folder.size(name)
        if size != recorded.size:
            raise CheckpointUnusable(f"{name} has {size} bytes, not {recorded.size}")
        if not folder.agrees(name, recorded):
            raise CheckpointUnusable(f"{name} has other content than was written")
    except OutOfReach:
        raise
    except FileNotFoundError as error:
        raise CheckpointUnusable(f"{name} is missing") from error
    except OSError as error:
        raise CheckpointUnusable(f"{name} cannot be read: {error.strerror}") from error


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except OutOfReach:
        raise
    except FileNotFoundError as error:
        raise CheckpointUnusable(f"{name} is missing") from error
    except OSError as error:
        raise CheckpointUnusable(f"{name} cannot be read: {error.strerror}") from error


def _listing(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name not in OUTSIDE_THE_PROOF]
