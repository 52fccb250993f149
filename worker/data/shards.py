"""A folder of token shards as a source: opened, and refused by name where it cannot be trained on.

With a manifest the folder must be what the manifest says, hash by hash. Without one, files of bare
ids are taken as they are once every id is known to be in the vocabulary. Must not import JAX.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

import numpy as np
from pydantic import ValidationError

from worker.data.checks import Checks, IdFile, Seen
from worker.data.samples import Ids, Samples, Stream
from worker.ends import Invalid
from worker.protocol.data import Shards
from worker.protocol.shards import (
    ID_BYTES,
    LARGEST_MANIFEST,
    MANIFEST,
    BestFit,
    Dtype,
    ShardManifest,
    ShardRecord,
    TokenizerRecord,
    held_apart,
    misfits,
    samples_in,
    wrong_size,
)

HELD_OUT_NAME = re.compile(r"(?:^|[._-])(?:val|valid|validation)(?:[._-]|$)")
HEADER_BYTES = 1024  # of llm.c: 256 numbers of 32 bits
HEADERS: dict[tuple[int, int], Dtype] = {  # its magic number and version
    (20240520, 1): "uint16",
    (20240801, 7): "uint32",
}
FIELD = "/data/source/path"
BYTES_HINT = "Copy the shards again from where they were made, or prepare them again."


@dataclass(frozen=True)
class ShardFolder:
    """`row` is set where the rows were packed; `text` names the ids, wherever they lie."""

    train: tuple[IdFile, ...]
    held_out: tuple[IdFile, ...]
    row: int | None
    tokenizer: TokenizerRecord | None
    tokenizer_file: Path | None
    text: str

    def split(self, context: int, share: float) -> tuple[Samples, Samples]:
        """To train on, and held out: what the folder holds out, else the last `share` of it.

        Where nothing is to be held out, what the folder holds out is left alone.
        """
        train = _maps(self.train)
        width = context + 1
        # Neighbours share a token: the last target of one is the first input of the next.
        stride = width if self.row else context
        if self.held_out or share == 0:
            held = _maps(self.held_out) if share else ()
            return Stream(train, width, stride), Stream(held, width, stride)
        count = samples_in(sum(map(len, train)), width, stride)
        apart = held_apart(count, share)
        return (
            Stream(train, width, stride, 0, count - apart),
            Stream(train, width, stride, count - apart, apart),
        )


def _maps(files: Sequence[IdFile]) -> tuple[Ids, ...]:
    return tuple(file.mapped() for file in files)


def open_shards(source: Shards, vocabulary: int, context: int, checks: Checks) -> ShardFolder:
    """Raises Invalid for whatever keeps a model of that vocabulary and context from training."""
    folder = Path(source.path)
    try:
        if (folder / MANIFEST).exists():
            return _with_manifest(source, folder, vocabulary, context, checks)
        if not folder.is_dir():
            _refuse(
                f"{folder} is no folder on this host",
                "Name a folder with shards that the training host has.",
            )
        return _bare(source, folder, vocabulary, checks)
    except OSError as error:
        raise Invalid(
            f"{error.filename or folder} cannot be read: {error.strerror or error}",
            field=FIELD,
            hint="Let the user that trains read the folder and all files in it.",
        ) from error


def _with_manifest(
    source: Shards, folder: Path, vocabulary: int, context: int, checks: Checks
) -> ShardFolder:
    text = _within(folder, MANIFEST).read_bytes()
    manifest = read_manifest(text, folder)
    pinned = source.manifest_sha256
    if pinned is not None and pinned != hashlib.sha256(text).hexdigest():
        raise Invalid(
            f"the manifest of {folder} is not the one that the spec names",
            field="/data/source/manifest_sha256",
            hint="Bring the folder back as it was, or name its manifest's hash as it is now.",
        )
    for misfit in misfits(manifest, vocabulary, context):
        raise Invalid(misfit.detail, field=misfit.pointer, hint=misfit.hint)
    files = [_recorded(folder, record, manifest.dtype) for record in manifest.shards]
    for record, seen in zip(manifest.shards, checks.of(files), strict=True):
        _compare(folder, record, seen)
    named = manifest.tokenizer.file
    tokenizer = None if named is None else _within(folder, named)
    if tokenizer is not None:
        tokenizer.stat()
    by_split = list(zip(files, manifest.shards, strict=True))
    return ShardFolder(
        train=tuple(file for file, record in by_split if record.split == "train"),
        held_out=tuple(file for file, record in by_split if record.split == "held-out"),
        row=manifest.packing.row if isinstance(manifest.packing, BestFit) else None,
        tokenizer=manifest.tokenizer,
        tokenizer_file=tokenizer,
        text=_named([(r.split, manifest.dtype, r.sha256) for r in manifest.shards]),
    )


def read_manifest(text: bytes, folder: Path) -> ShardManifest:
    """Raises Invalid for what is no manifest."""
    try:
        if len(text) > LARGEST_MANIFEST:
            _refuse(f"the manifest of {folder} is too large", BYTES_HINT)
        return ShardManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        _refuse(
            f"the manifest of {folder} cannot be used: {f'{where}: ' * bool(where)}{first['msg']}",
            BYTES_HINT,
        )


def _recorded(folder: Path, record: ShardRecord, dtype: Dtype) -> IdFile:
    path = _within(folder, record.file)
    if not path.is_file():
        _refuse(f"{path} is missing, and its manifest names it", BYTES_HINT)
    wrong = wrong_size(record, dtype, path.stat().st_size)
    if wrong is not None:
        _refuse(f"in {folder}, {wrong}", BYTES_HINT)
    return IdFile(path, dtype, record.tokens)


def _compare(folder: Path, record: ShardRecord, seen: Seen) -> None:
    if seen.sha256 != record.sha256:
        _refuse(f"{folder / record.file} has another hash than its manifest says", BYTES_HINT)
    if (seen.lowest, seen.highest) != (record.lowest, record.highest):
        _refuse(
            f"{folder / record.file} has ids from {seen.lowest:,} to {seen.highest:,}, and its"
            f" manifest says {record.lowest:,} to {record.highest:,}",
            BYTES_HINT,
        )


def _bare(source: Shards, folder: Path, vocabulary: int, checks: Checks) -> ShardFolder:
    if source.manifest_sha256 is not None:
        _refuse(
            f"{folder} has no {MANIFEST}, and the spec names one by its hash",
            "Prepare the folder with longhaul data prepare, or leave manifest_sha256 out.",
        )
    paths = sorted(p for p in folder.iterdir() if fnmatchcase(p.name, source.files) and p.is_file())
    if not paths:
        _refuse(
            f"{folder} has neither a {MANIFEST} nor files like {source.files}",
            "Prepare the folder with longhaul data prepare, or set data.source.files.",
        )
    files = [bare_file(_within(folder, path.name), source.dtype) for path in paths]
    found = checks.of(files)
    for file, seen in zip(files, found, strict=True):
        if seen.highest >= vocabulary:
            _refuse(
                f"{file.path} has id {seen.highest:,}, and the model has {vocabulary:,}",
                "Set model.vocab_size to that of the tokenizer that made the shards, and"
                " data.source.dtype to the type of their ids.",
            )
    held = [HELD_OUT_NAME.search(path.name.lower()) is not None for path in paths]
    if all(held):
        _refuse(
            f"every file of {folder} has val in its name, so none is left to train on",
            "Set data.source.files to what the training files are named like.",
        )
    return ShardFolder(
        train=tuple(file for file, out in zip(files, held, strict=True) if not out),
        held_out=tuple(file for file, out in zip(files, held, strict=True) if out),
        row=None,
        tokenizer=None,
        tokenizer_file=None,
        text=_named(
            [
                ("held-out" if out else "train", file.dtype, seen.sha256)
                for file, seen, out in zip(files, found, held, strict=True)
            ]
        ),
    )


def bare_file(path: Path, dtype: Dtype) -> IdFile:
    """With llm.c's header, where it has one; raises Invalid for a length that cannot be."""
    size = path.stat().st_size
    if size >= HEADER_BYTES:
        magic, version, tokens = np.fromfile(path, "<i4", 3).tolist()
        own = HEADERS.get((magic, version))
        if own is not None:
            if size != HEADER_BYTES + tokens * ID_BYTES[own]:
                _refuse(
                    f"{path} has {size:,} bytes, and its header tells of {tokens:,} tokens",
                    "It is cut off or damaged: copy it again.",
                )
            dtype, size = own, size - HEADER_BYTES
            return IdFile(path, dtype, _whole(path, dtype, size), HEADER_BYTES)
    return IdFile(path, dtype, _whole(path, dtype, size))


def _whole(path: Path, dtype: Dtype, size: int) -> int:
    each = ID_BYTES[dtype]
    if size == 0 or size % each:
        _refuse(
            f"{path} has {size:,} bytes, which are no whole number of {dtype} ids above 0",
            "It is cut off, or data.source.dtype is not the type of its ids.",
        )
    return size // each


def _within(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        _refuse(
            f"{path} is a link that leads out of {folder}",
            "Copy the linked file into the folder, or remove the link.",
        )
    return path


def _named(shards: Sequence[tuple[str, str, str]]) -> str:
    """By split, type and hash of each, in order."""
    told = "".join(f"{' '.join(shard)}\n" for shard in shards)
    return hashlib.sha256(b"shards\n" + told.encode()).hexdigest()


def _refuse(error: str, hint: str) -> NoReturn:
    raise Invalid(error, field=FIELD, hint=hint)
