"""Folders of shards, made in this process or written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worker.data.prepare.preparing import prepare
from worker.protocol.preparing import PrepareData, ShardsMade


def prepared(inputs: Path, out: Path, **changes: Any) -> ShardsMade:
    asked = {"inputs": [str(inputs)], "out": str(out)} | changes
    return prepare(PrepareData.model_validate(asked), lambda _: None)


def bare(folder: Path, **files: np.ndarray) -> Path:
    """Each as `NAME.bin`, its ids and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in files.items():
        ids.tofile(folder / f"{name}.bin")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
