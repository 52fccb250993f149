"""The first half: each input becomes a part, the ids of its documents and where each ends.

A part is made by one process. Its record is written last and makes it count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from worker.data.prepare.inputs import PrepareError, documents
from worker.data.prepare.plan import WORK, Plan
from worker.data.samples import Ids
from worker.protocol.shards import BestFit
from worker.storage import sync_folder, write_atomically
from worker.tokenizers.base import IdArray, Tokenizer, TokenizerError

Split = Literal["train", "held-out"]
SPLITS: tuple[Split, ...] = ("train", "held-out")
Tell = Callable[[int], None]


class PartRecord(BaseModel):
    """By split, its documents and tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: dict[Split, int]
    tokens: dict[Split, int]


def record_path(out: Path, number: int) -> Path:
    return out / WORK / f"part-{number:05}.json"


def ids_path(out: Path, number: int, split: Split) -> Path:
    return out / WORK / f"part-{number:05}.{split}.ids"


def lengths_path(out: Path, number: int, split: Split) -> Path:
    return out / WORK / f"part-{number:05}.{split}.lengths"


def ids_of(out: Path, number: int, split: Split, tokens: int, dtype: str) -> Ids:
    """Mapped; none is of length 0, which cannot be."""
    if not tokens:
        return np.empty(0, np.dtype(dtype).newbyteorder("<"))
    kind = np.dtype(dtype).newbyteorder("<")
    return np.memmap(ids_path(out, number, split), kind, "r", shape=(tokens,))


def lengths_of(out: Path, number: int, split: Split) -> NDArray[np.int64]:
    return np.fromfile(lengths_path(out, number, split), "<i8")


def make_part(plan: Plan, tokenizer: Tokenizer, out: Path, number: int, tell: Tell) -> PartRecord:
    """Raises PrepareError, naming the place in the input."""
    given, recipe = plan.inputs[number], plan.recipe
    record, packed = recipe.tokenizer, isinstance(recipe.packing, BestFit)
    kind = np.dtype(recipe.dtype).newbyteorder("<")
    counts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    own = f".{os.getpid()}.draft"
    with _drafts(out, number, own) as files:
        for place, document in documents(Path(given.path), recipe.field, tell):
            try:
                ids = tokenizer.encode(document)
            except TokenizerError as error:
                where = f"{given.path}, {place}" if place else given.path
                raise PrepareError(f"{where}: {error}", error.hint) from error
            ids = _with_marks(ids, record.begin, record.end, packed=packed)
            split: Split = "held-out" if _held_out(document, recipe.held_out) else "train"
            files[split].write(ids.astype(kind).tobytes())
            counts[split].append(len(ids))
    made = PartRecord(
        documents={split: len(counts[split]) for split in SPLITS},
        tokens={split: sum(counts[split]) for split in SPLITS},
    )
    for split in SPLITS:
        ids_path(out, number, split).with_suffix(f".ids{own}").replace(ids_path(out, number, split))
        lengths = np.array(counts[split], "<i8").tobytes()
        write_atomically(lengths_path(out, number, split), lengths)
    sync_folder(out / WORK)
    write_atomically(record_path(out, number), made.model_dump_json())
    return made


@contextmanager
def _drafts(out: Path, number: int, own: str) -> Generator[dict[Split, Any]]:
    """A file of ids for each split, on disk once it is left without an error."""
    with ExitStack() as stack:
        files: dict[Split, Any] = {}
        for split in SPLITS:
            path = ids_path(out, number, split).with_suffix(f".ids{own}")
            files[split] = stack.enter_context(path.open("wb"))
        yield files
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())


def _with_marks(ids: IdArray, begin: int | None, end: int | None, *, packed: bool) -> IdArray:
    """In one stream the marks stand where the tokenizer has them. A packed document begins with
    one, whichever there is, and the next one ends it."""
    if packed:
        begin, end = (end if begin is None else begin), None
    before = () if begin is None else (begin,)
    after = () if end is None else (end,)
    return np.concatenate((np.array(before, np.uint32), ids, np.array(after, np.uint32)))


def _held_out(document: bytes, share: float) -> bool:
    """By its text alone, so that a document that comes twice is on one side."""
    if not share:
        return False
    return int.from_bytes(hashlib.sha256(document).digest()[:6]) / (1 << 48) < share
