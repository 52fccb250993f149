"""From a data source to tokens: which files, in which order, and what is held out.

Owns reading and the held-out split. Everything here is a function of the files' names and bytes,
so that every host, and every attempt, sees the same text. Must not import JAX.
"""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.ends import Invalid
from worker.protocol import DataSpec, Mixture, PythonSource, Shards, TextFiles
from worker.tokenizers.base import Tokenizer, TokenizerError
from worker.tokenizers.plain import Bytes, CharacterTokenizer

LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)

Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class Document:
    """One file: `name` is its path inside the source, with forward slashes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Corpus:
    """Tokens, each document ended by its mark where there is one; `fingerprint` names the text."""

    train: Tokens
    held_out: Tokens
    files: int
    held_out_files: int
    fingerprint: str


def load_corpus(spec: DataSpec) -> Corpus:
    """Reads and splits the source. Raises Invalid, naming the field, when it cannot."""
    documents = _read(spec)
    if len(documents) == 1 and spec.held_out > 0:
        train, held = _split_tail(documents[0], spec.held_out)
    else:
        train, held = split_by_file(documents, spec.held_out)
    tokenizer = Bytes() if spec.tokenizer is None else CharacterTokenizer(spec.tokenizer)
    kept, left_out = tokenize(train, tokenizer), tokenize(held, tokenizer)
    digest = hashlib.sha256(kept.tobytes())
    digest.update(b"held out")
    digest.update(left_out.tobytes())
    return Corpus(kept, left_out, len(documents), len(held), digest.hexdigest())


def tokenize(documents: Sequence[Document], tokenizer: Tokenizer | None = None) -> Tokens:
    """As bytes where no tokenizer is given. Raises Invalid for what it cannot read."""
    tokenizer = tokenizer or Bytes()
    end, parts = tokenizer.record.end, list[Tokens]()
    for document in documents:
        try:
            parts.append(tokenizer.encode(document.data).astype(np.uint16))
        except TokenizerError as error:
            raise Invalid(
                f"{document.name}: {error}", field="/data/tokenizer", hint=error.hint
            ) from error
        if end is not None:
            parts.append(np.array([end], np.uint16))
    return np.concatenate(parts) if parts else np.empty(0, np.uint16)


def split_by_file(
    documents: Sequence[Document], share: float
) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, in order: a file's side follows from its name alone.

    With at least two files and `share` above zero neither side is empty.
    """
    if share == 0 or len(documents) < 2:
        return list(documents), []
    lots = {document.name: _lot(document.name) for document in documents}
    held = {name for name, lot in lots.items() if lot < share}
    held = held or {min(lots, key=lambda name: lots[name])}
    if len(held) == len(lots):
        held.remove(max(lots, key=lambda name: lots[name]))
    return (
        [document for document in documents if document.name not in held],
        [document for document in documents if document.name in held],
    )


def _split_tail(document: Document, share: float) -> tuple[list[Document], list[Document]]:
    cut = len(document.data) - math.ceil(len(document.data) * share)
    return (
        [Document(document.name, document.data[:cut])],
        [Document(f"{document.name} (tail)", document.data[cut:])],
    )


def _lot(name: str) -> float:
    """A number in [0, 1) drawn from the name."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6]) / (
        1 << 48
    )


def _read(spec: DataSpec) -> list[Document]:
    match spec.source:
        case PythonSource():
            root = Path(sysconfig.get_path("stdlib"))
            return _read_folder(root, (".py",), LEFT_OUT_FOLDERS, "/data/source")
        case TextFiles(path=given, suffixes=suffixes):
            path = Path(given)
            if path.is_dir():
                return _read_folder(path, suffixes, frozenset(), "/data/source/path")
            return [Document(path.name, _read_file(path, "/data/source/path"))]
        case Shards() | Mixture():
            raise TypeError("only text has documents")


def _read_folder(
    root: Path, suffixes: tuple[str, ...], left_out: frozenset[str], field: str
) -> list[Document]:
    names: list[str] = []
    for folder, inner, files in os.walk(root, onerror=_refuse(field)):
        inner[:] = [name for name in inner if name not in left_out]
        here = Path(folder).relative_to(root)
        names += [(here / name).as_posix() for name in files if name.endswith(suffixes)]
    real_root = root.resolve()
    documents = []
    for name in sorted(names):
        path = root / name
        if path.is_symlink() and not path.resolve().is_relative_to(real_root):
            raise Invalid(
                f"{path} is a link that leads out of {root}",
                field=field,
                hint="Copy the linked file into the folder, or remove the link.",
            )
        documents.append(Document(name, _read_file(path, field)))
    if not documents:
        raise Invalid(
            f"{root} has no file that ends in {', '.join(suffixes)}",
            field=field,
            hint="Name a folder with text, or set data.source.suffixes to what its files end in.",
        )
    return documents


def _read_file(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(error, path, field) from error


def _refuse(field: str):
    def refuse(error: OSError) -> None:
        raise _unreadable(error, Path(str(error.filename)), field) from error

    return refuse


def _unreadable(error: OSError, path: Path, field: str) -> Invalid:
    return Invalid(
        f"{path} cannot be read: {error.strerror}",
        field=field,
        hint="Name a path that exists on the training host and that its user may read.",
    )
