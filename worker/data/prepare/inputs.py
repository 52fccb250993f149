"""Which files are read, and the documents in them: text, JSONL and parquet.

A text file is one document; so is each line of JSONL and each row of parquet, by the field that
holds its text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from worker.tokenizers.base import TokenizerError
from worker.tokenizers.libraries import library

ROWS = 1000  # of parquet, at once
Tell = Callable[[int], None]  # bytes read since the last call


class PrepareError(Exception):
    """The shards cannot be made; `hint` says what to do."""

    def __init__(self, error: str, hint: str) -> None:
        super().__init__(error)
        self.hint = hint


@dataclass(frozen=True)
class Input:
    """`name` is what it is called wherever it lies; `changed` its time of change, in ns."""

    name: str
    path: Path
    size: int
    changed: int


def find(given: Sequence[str], suffixes: tuple[str, ...]) -> list[Input]:
    """Files as they are given, folders by the names of what they hold. Raises PrepareError."""
    found: list[Input] = []
    for one in given:
        path = Path(one)
        try:
            if path.is_dir():
                found += _below(path, suffixes)
            else:
                found.append(_input(path.name, path))
        except OSError as error:
            raise PrepareError(
                f"{error.filename} cannot be read: {error.strerror}", "Check the path."
            ) from error
    if not found:
        raise PrepareError(
            f"nothing below {', '.join(given)} ends in {', '.join(suffixes)}",
            "Say what your files end in with --suffix.",
        )
    return found


def _below(root: Path, suffixes: tuple[str, ...]) -> list[Input]:
    names: list[str] = []
    for folder, _, files in os.walk(root, onerror=_raise):
        here = Path(folder).relative_to(root)
        names += [(here / name).as_posix() for name in files if name.endswith(suffixes)]
    real = root.resolve()
    for name in names:
        if not (root / name).resolve().is_relative_to(real):
            raise PrepareError(
                f"{root / name} is a link that leads out of {root}", "Copy the file there."
            )
    return [_input(name, root / name) for name in sorted(names)]


def _raise(error: OSError) -> None:
    raise error


def _input(name: str, path: Path) -> Input:
    facts = path.stat()
    return Input(name, path, facts.st_size, facts.st_mtime_ns)


def documents(path: Path, field: str, tell: Tell) -> Iterator[tuple[str, bytes]]:
    """Each document's place within the file, and its text. Raises PrepareError."""
    try:
        if path.name.endswith(".jsonl"):
            yield from _jsonl(path, field, tell)
        elif path.name.endswith(".parquet"):
            yield from _parquet(path, field, tell)
        else:
            text = path.read_bytes()
            yield "", text
            tell(len(text))
    except OSError as error:
        raise PrepareError(
            f"{path} cannot be read: {error.strerror}", "Check the disk and the rights."
        ) from error


def _jsonl(path: Path, field: str, tell: Tell) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number:,}", _field(path, number, line, field)
            tell(len(line))


def _field(path: Path, number: int, line: bytes, field: str) -> bytes:
    try:
        held: Any = json.loads(line)
    except ValueError as error:
        raise PrepareError(
            f"{path}, line {number:,} is not JSON: {error}", "Repair or remove the line."
        ) from error
    text = cast(dict[str, object], held).get(field) if isinstance(held, dict) else None
    if not isinstance(text, str):
        raise PrepareError(
            f"{path}, line {number:,} has no text in {field!r}",
            "Say which field holds the text with --field.",
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise PrepareError(
            f"{path}, line {number:,} has half of a surrogate pair", "Repair or remove the line."
        ) from error


def _parquet(path: Path, field: str, tell: Tell) -> Iterator[tuple[str, bytes]]:
    try:
        library("pyarrow")
    except TokenizerError as error:
        raise PrepareError(str(error), error.hint) from error
    parquet = cast(Any, library("pyarrow.parquet"))
    arrow: Any = library("pyarrow")
    size, row, told = path.stat().st_size, 0, 0
    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise PrepareError(
                f"{path} has no column {field!r}", "Say which holds the text with --field."
            )
        rows = max(1, file.metadata.num_rows)
        for batch in file.iter_batches(ROWS, columns=[field]):
            for value in batch.column(0):
                row += 1
                text = value.as_py()
                if not isinstance(text, str):
                    raise PrepareError(
                        f"{path}, row {row:,} has no text in {field!r}",
                        "Say which column holds the text with --field.",
                    )
                yield f"row {row:,}", text.encode()
            tell(size * row // rows - told)
            told = size * row // rows
    except arrow.ArrowException as error:
        raise PrepareError(f"{path} is no parquet file: {error}", "Copy it again.") from error
