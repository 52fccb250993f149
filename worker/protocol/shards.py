"""The manifest of a folder of token shards, and what of it a model cannot train on.

`longhaul data prepare` writes it last; the API and the hosts hold a spec to it. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from worker.protocol.base import Count, Spec

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 16 << 20  # bytes
PADDING = 128  # a model may have fewer than so many rows more than its tokenizer has ids

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$")]
Dtype = Literal["uint16", "uint32"]
Id = Annotated[int, Field(ge=0, lt=1 << 32)]
ID_BYTES = {"uint16": 2, "uint32": 4}


class TokenizerRecord(Spec):
    """Which tokenizer made the ids: `sha256` is its identity, `file` its copy in the folder.

    `begin` and `end` are the ids that stand around a document, where there are any.
    """

    kind: Literal["bytes", "characters", "tiktoken", "sentencepiece", "huggingface"]
    vocabulary: Count
    sha256: Sha256
    file: FileName | None = None
    begin: Id | None = None
    end: Id | None = None


class Chunks(Spec):
    """One stream of documents, cut into samples when it is trained on."""

    kind: Literal["chunks"] = "chunks"


class BestFit(Spec):
    """Rows of `row` tokens, each of which begins where a document, or a piece of one, begins."""

    kind: Literal["best-fit"] = "best-fit"
    row: Annotated[int, Field(ge=2)]


Packing = Annotated[Chunks | BestFit, Field(discriminator="kind")]


class ShardRecord(Spec):
    """One file: its length in tokens, its smallest and largest id, the hash of its bytes."""

    file: FileName
    split: Literal["train", "held-out"]
    tokens: Count
    lowest: Id
    highest: Id
    sha256: Sha256


class ShardManifest(Spec):
    """`recipe` is the hash of all that the shards were made from and of how.

    `documents` and the tokens of the shards are what was read; `left_out` counts tokens that filled
    no row.
    """

    version: Literal[1] = 1
    recipe: Sha256
    dtype: Dtype
    tokenizer: TokenizerRecord
    packing: Packing
    documents: Annotated[int, Field(ge=0)]
    left_out: Annotated[int, Field(ge=0)] = 0
    shards: Annotated[tuple[ShardRecord, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        names = [shard.file for shard in self.shards]
        if len(set(names)) < len(names):
            raise ValueError("two shards have the same name")
        for shard in self.shards:
            if shard.highest >= self.tokenizer.vocabulary:
                raise ValueError(
                    f"{shard.file} has id {shard.highest:,}, beyond the tokenizer's"
                    f" {self.tokenizer.vocabulary:,}"
                )
            if isinstance(self.packing, BestFit) and shard.tokens % self.packing.row:
                raise ValueError(f"{shard.file} does not hold whole rows of {self.packing.row}")
        return self

    def tokens(self, split: Literal["train", "held-out"]) -> int:
        return sum(shard.tokens for shard in self.shards if shard.split == split)


@dataclass(frozen=True)
class Misfit:
    """Why a model cannot train on some shards; `pointer` leads to the field at fault."""

    pointer: str
    detail: str
    hint: str


def misfits(manifest: ShardManifest, vocabulary: int, context: int) -> Iterator[Misfit]:
    """`vocabulary` and `context` are the model's."""
    tokenizer, packing = manifest.tokenizer, manifest.packing
    if not 0 <= vocabulary - tokenizer.vocabulary < PADDING:
        yield Misfit(
            "/model/vocab_size",
            f"The shards' tokenizer ({tokenizer.kind}) has {tokenizer.vocabulary:,} ids, and the"
            f" model {vocabulary:,}.",
            f"Set model.vocab_size to {tokenizer.vocabulary}; fewer than {PADDING} more pad it.",
        )
    if isinstance(packing, BestFit) and packing.row != context + 1:
        yield Misfit(
            "/model/context",
            f"The shards are packed in rows of {packing.row:,} tokens, and the model's context of"
            f" {context:,} needs {context + 1:,}.",
            f"Set model.context to {packing.row - 1}, or prepare the data for this context.",
        )


def wrong_size(record: ShardRecord, dtype: Dtype, size: int) -> str | None:
    """What is wrong with a file of `size` bytes; None where it can be the one recorded."""
    due = record.tokens * ID_BYTES[dtype]
    if size == due:
        return None
    return f"{record.file} has {size:,} bytes, and its manifest says {due:,}"


def samples_in(tokens: int, width: int, stride: int) -> int:
    """How many samples of `width` tokens a stream holds, each beginning `stride` further on."""
    return 0 if tokens < width else (tokens - width) // stride + 1


def held_apart(samples: int, share: float) -> int:
    """How many of the last samples are held out where the shards hold out nothing themselves."""
    return math.ceil(samples * Fraction(str(share)))  # 0.07 is seven hundredths
