"""The second half: the parts, one after the other, become shards of about the same length.

Which tokens, or which documents, are in a shard follows from the lengths of the parts alone, so
shards are made at the same time and in any order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from worker.data.prepare.packing import best_fit
from worker.data.prepare.parts import PartRecord, Split, Tell, ids_of, lengths_of
from worker.data.prepare.plan import WORK, Plan
from worker.data.samples import Ids
from worker.protocol.shards import BestFit, ShardRecord
from worker.storage import sync_folder, write_atomically
from worker.tokenizers.base import IdArray

COPY_IDS = 1 << 22


@dataclass(frozen=True)
class ShardTask:
    """The tokens `first` to before `last` of a split; packed, the documents that begin there."""

    split: Split
    number: int
    first: int
    last: int

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:05}.bin"


class ShardMade(BaseModel):
    """`record` is None where not one row was filled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: ShardRecord | None
    left_out: int


def tasks(plan: Plan, parts: Sequence[PartRecord], split: Split) -> list[ShardTask]:
    total, each = sum(part.tokens[split] for part in parts), plan.recipe.shard_tokens
    starts = range(0, total, each)
    return [ShardTask(split, n, start, min(start + each, total)) for n, start in enumerate(starts)]


def made_path(out: Path, task: ShardTask) -> Path:
    return out / WORK / f"{task.file}.json"


def make_shard(
    plan: Plan, parts: Sequence[PartRecord], out: Path, task: ShardTask, tell: Tell
) -> ShardMade:
    packing, dtype = plan.recipe.packing, plan.recipe.dtype
    kind = np.dtype(dtype).newbyteorder("<")
    source = _Stream(out, parts, task.split, dtype)
    pieces = (
        _rows(plan, source, task, packing.row)
        if isinstance(packing, BestFit)
        else source.between(task.first, task.last)
    )
    path = out / task.file
    draft = out / WORK / f"{task.file}.{os.getpid()}.draft"
    digest, tokens, left_out, lows, highs = hashlib.sha256(), 0, 0, list[int](), list[int]()
    with draft.open("wb") as file:
        for piece in pieces:
            if isinstance(piece, int):
                left_out = piece
                continue
            content = piece.astype(kind).tobytes()
            file.write(content)
            digest.update(content)
            tokens += len(piece)
            lows.append(int(piece.min()))
            highs.append(int(piece.max()))
            tell(len(content))
        file.flush()
        os.fsync(file.fileno())
    record = None
    if tokens:
        draft.replace(path)
        sync_folder(out)
        record = ShardRecord(
            file=task.file,
            split=task.split,
            tokens=tokens,
            lowest=min(lows),
            highest=max(highs),
            sha256=digest.hexdigest(),
        )
    else:
        draft.unlink()
    made = ShardMade(record=record, left_out=left_out)
    write_atomically(made_path(out, task), made.model_dump_json())
    return made


class _Stream:
    """The parts of a split as one."""

    def __init__(self, out: Path, parts: Sequence[PartRecord], split: Split, dtype: str) -> None:
        self._out, self._parts, self._dtype = out, parts, dtype
        self._split: Split = split
        tokens = [part.tokens[split] for part in parts]
        self._starts = np.concatenate(([0], np.cumsum(tokens, dtype=np.int64)))

    def between(self, first: int, last: int) -> Iterator[Ids]:
        for number in self._touching(first, last):
            start = int(self._starts[number])
            ids = self._ids(number)
            low, high = max(first - start, 0), min(last - start, len(ids))
            for at in range(low, high, COPY_IDS):
                yield ids[at : min(at + COPY_IDS, high)]

    def documents(self, first: int, last: int) -> Iterator[IdArray]:
        """Whole ones, those that begin from `first` to before `last`."""
        for number in self._touching(first, last):
            lengths = lengths_of(self._out, number, self._split)
            ends = int(self._starts[number]) + np.cumsum(lengths)
            begins = ends - lengths
            ids, start = self._ids(number), int(self._starts[number])
            wanted = np.flatnonzero((begins >= first) & (begins < last))
            for which in wanted:
                low, high = int(begins[which]) - start, int(ends[which]) - start
                yield ids[low:high].astype(np.uint32)

    def _touching(self, first: int, last: int) -> range:
        low = int(np.searchsorted(self._starts, first, "right")) - 1
        high = int(np.searchsorted(self._starts, last, "left"))
        return range(max(low, 0), min(high, len(self._parts)))

    def _ids(self, number: int) -> Ids:
        tokens = self._parts[number].tokens[self._split]
        return ids_of(self._out, number, self._split, tokens, self._dtype)


def _rows(plan: Plan, source: _Stream, task: ShardTask, row: int) -> Iterator[IdArray | int]:
    tokenizer = plan.recipe.tokenizer
    mark = tokenizer.end if tokenizer.begin is None else tokenizer.begin
    assert mark is not None, "the plan was refused"
    return best_fit(source.documents(task.first, task.last), mark, row)
