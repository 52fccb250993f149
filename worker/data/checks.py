"""What was read of a file once need not be read again: hashes and ranges of shards, kept by host.

A hash costs a second a gigabyte, and a restart must not wait for it. A file counts as the one that
was read while its size, its time of change and its place on the disk are the same. Must not import
JAX.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from worker.data.samples import Ids
from worker.protocol.shards import ID_BYTES, Dtype
from worker.storage import write_atomically

CHUNK_IDS = 1 << 22
AT_ONCE = 4  # files that are read at the same time


class Seen(BaseModel):
    """`sha256` is of the ids alone, without a header."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    lowest: int
    highest: int


_KEPT: TypeAdapter[dict[str, Seen]] = TypeAdapter(dict[str, Seen])


@dataclass(frozen=True)
class IdFile:
    """Ids in a file, `offset` bytes after its start."""

    path: Path
    dtype: Dtype
    tokens: int
    offset: int = 0

    def mapped(self) -> Ids:
        kind = np.dtype(self.dtype).newbyteorder("<")
        return np.memmap(self.path, kind, "r", self.offset, (self.tokens,))


@dataclass
class Checks:
    """`kept` is where they stay from one start to the next; None keeps nothing."""

    kept: Path | None = None
    _known: dict[str, Seen] = field(default_factory=dict[str, Seen])

    def __post_init__(self) -> None:
        if self.kept is not None:
            with contextlib.suppress(OSError, ValidationError):
                self._known = _KEPT.validate_json(self.kept.read_bytes())

    def of(self, files: Sequence[IdFile]) -> list[Seen]:
        """Of each file, read now where it was not before. Raises OSError."""
        keys = [_key(file) for file in files]
        fresh = {key: file for key, file in zip(keys, files, strict=True) if key not in self._known}
        if fresh:
            if self.kept is not None:  # a trainer's; whoever asks for a check sees its progress
                size = sum(file.tokens * ID_BYTES[file.dtype] for file in fresh.values())
                which = f"{len(fresh)} of {len(files)} shards"
                print(f"reading every id of {which}, {size / 1e6:,.1f} MB", flush=True)
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="check") as pool:
                self._known |= dict(zip(fresh, pool.map(see, fresh.values()), strict=True))
            self._keep()
        return [self._known[key] for key in keys]

    def _keep(self) -> None:
        if self.kept is not None:
            with contextlib.suppress(OSError):  # it is read again next time
                write_atomically(self.kept, _KEPT.dump_json(self._known).decode())


def see(file: IdFile) -> Seen:
    """Reads the whole file, which must hold an id."""
    digest, lows, highs = hashlib.sha256(), [], []
    ids = file.mapped()
    for start in range(0, len(ids), CHUNK_IDS):
        part = ids[start : start + CHUNK_IDS]
        digest.update(np.ascontiguousarray(part).data)
        lows.append(int(part.min()))
        highs.append(int(part.max()))
    return Seen(sha256=digest.hexdigest(), lowest=min(lows), highest=max(highs))


def _key(file: IdFile) -> str:
    real = os.path.realpath(file.path)
    is_now = Path(real).stat()
    facts = (is_now.st_size, is_now.st_mtime_ns, is_now.st_ctime_ns, is_now.st_ino)
    return "|".join(map(str, (real, *facts, file.dtype, file.offset)))
