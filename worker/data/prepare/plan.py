"""What a preparation is of, told beside it so that another process can go on with it.

The recipe is the hash of all that the shards follow from: the settings, the tokenizer, and the
names and sizes of the inputs. How many workers there are and where they were killed is no part of
it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.data.prepare.inputs import Input, PrepareError, find
from worker.protocol.preparing import PrepareData
from worker.protocol.shards import BestFit, Chunks, Dtype, Packing, TokenizerRecord
from worker.storage import write_atomically
from worker.tokenizers.base import Tokenizer
from worker.tokenizers.load import content_of, open_tokenizer

WORK = "preparing"  # in the folder that is made; gone when it is whole
PLAN = "plan.json"
SMALL_IDS = 1 << 16


class InputRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    size: int
    changed: int

    @classmethod
    def of(cls, one: Input) -> Self:
        path = str(one.path.absolute())
        return cls(name=one.name, path=path, size=one.size, changed=one.changed)


class Recipe(BaseModel):
    """What the bytes of the shards follow from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: TokenizerRecord
    packing: Packing
    dtype: Dtype
    held_out: float
    shard_tokens: int
    field: str
    inputs: tuple[tuple[str, int], ...]  # names and sizes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Plan(BaseModel):
    """`tokenizer_path` is its copy in the working folder; None where it has no file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    inputs: tuple[InputRecord, ...]
    begin: str | None
    end: str | None
    tokenizer_path: str | None

    def open_tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.tokenizer_path or "bytes", self.begin, self.end)


def planned(asked: PrepareData, out: Path) -> tuple[Plan, Tokenizer]:
    """Reads nothing but the tokenizer. Raises PrepareError and TokenizerError."""
    tokenizer = open_tokenizer(asked.tokenizer, asked.begin, asked.end)
    record, inputs = tokenizer.record, find(asked.inputs, asked.suffixes)
    recipe = Recipe(
        tokenizer=record,
        packing=_packing(asked, record),
        dtype="uint16" if record.vocabulary <= SMALL_IDS else "uint32",
        held_out=asked.held_out,
        shard_tokens=asked.shard_tokens,
        field=asked.field,
        inputs=tuple((one.name, one.size) for one in inputs),
    )
    copy = None if record.file is None else str(out / WORK / record.file)
    records = tuple(map(InputRecord.of, inputs))
    plan = Plan(
        recipe=recipe, inputs=records, begin=asked.begin, end=asked.end, tokenizer_path=copy
    )
    return plan, tokenizer


def _packing(asked: PrepareData, record: TokenizerRecord) -> Packing:
    if asked.packing == "chunks":
        return Chunks()
    if asked.context is None:
        raise PrepareError(
            "best-fit packing needs the context of the model",
            "Give it with --context: rows are a token longer.",
        )
    if record.begin is None and record.end is None:
        raise PrepareError(
            f"the tokenizer ({record.kind}) has no mark for where a document begins",
            "Use --packing chunks, or a tokenizer with such a mark (--begin TOKEN).",
        )
    if asked.shard_tokens <= asked.context:
        raise PrepareError(
            f"a shard of {asked.shard_tokens} tokens holds no row", "Raise --shard-tokens."
        )
    return BestFit(row=asked.context + 1)


def settled(plan: Plan, tokenizer: Tokenizer, given: str, out: Path) -> None:
    """Leaves the plan in the working folder, or finds that the one there is the same.

    Raises PrepareError where another preparation was begun.
    """
    place = out / WORK / PLAN
    if place.exists():
        _refuse_another(plan, place, out)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    content = content_of(tokenizer, given)
    if plan.tokenizer_path is not None and content is not None:
        write_atomically(Path(plan.tokenizer_path), content)
    write_atomically(place, plan.model_dump_json(indent=1))


def _refuse_another(plan: Plan, place: Path, out: Path) -> None:
    hint = f"Give another --out, or remove {out} to begin anew."
    try:
        begun = Plan.model_validate_json(place.read_bytes())
    except ValidationError as error:
        raise PrepareError(f"{place} cannot be read", hint) from error
    changed = [
        now.name
        for now, then in zip(plan.inputs, begun.inputs, strict=False)
        if now.name == then.name and (now.size, now.changed) != (then.size, then.changed)
    ]
    if changed:
        raise PrepareError(f"{changed[0]} has changed since {out} was begun", hint)
    if begun.recipe.sha256 != plan.recipe.sha256:
        raise PrepareError(f"{out} was begun with other inputs or settings", hint)
