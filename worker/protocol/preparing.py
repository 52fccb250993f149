"""What `longhaul data` asks of `python -m worker.data`, and what that answers, line by line.

The command line has no numpy and no tokenizer; the process that has them is asked on its input and
answers JSON lines on its output.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from worker.protocol.base import Count, Spec
from worker.protocol.shards import Dtype, Sha256

TOKENS_A_SHARD = 100_000_000
Paths = Annotated[tuple[str, ...], Field(min_length=1)]


class PrepareData(Spec):
    """Makes shards of `inputs` in the folder `out`, or goes on where it was killed.

    `tokenizer` is `bytes` or a file; `begin` and `end` name its tokens around a document where they
    are not found by themselves.
    """

    kind: Literal["prepare"] = "prepare"
    inputs: Paths
    out: str
    suffixes: tuple[str, ...] = (".txt", ".md", ".jsonl", ".parquet")
    field: str = "text"
    tokenizer: str = "bytes"
    begin: str | None = None
    end: str | None = None
    packing: Literal["chunks", "best-fit"] = "chunks"
    context: Count | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shard_tokens: Annotated[int, Field(ge=1)] = TOKENS_A_SHARD
    workers: Annotated[int, Field(ge=1, le=1024)] = 1


class CheckData(Spec):
    """Reads every id of a folder of shards, with a manifest or without."""

    kind: Literal["check"] = "check"
    path: str
    files: str = "*.bin"
    dtype: Dtype = "uint16"


class TrainTokenizer(Spec):
    kind: Literal["train-tokenizer"] = "train-tokenizer"
    inputs: Paths
    out: str
    suffixes: tuple[str, ...] = (".txt", ".md", ".jsonl", ".parquet")
    field: str = "text"
    model: Literal["bpe", "sentencepiece"] = "bpe"
    vocabulary: Annotated[int, Field(ge=2, le=1 << 24)]


DataTask = Annotated[PrepareData | CheckData | TrainTokenizer, Field(discriminator="kind")]
DATA_TASK: TypeAdapter[DataTask] = TypeAdapter(DataTask)


class TaskProgress(Spec):
    """`done` and `total` are bytes."""

    kind: Literal["progress"] = "progress"
    doing: str
    done: int
    total: int


class TaskFailed(Spec):
    kind: Literal["failed"] = "failed"
    error: str
    hint: str


class ShardsMade(Spec):
    """`already` says that there was nothing left to do. Without a manifest, as in bare shards, its
    hash and the vocabulary are None."""

    kind: Literal["shards"] = "shards"
    path: str
    manifest_sha256: Sha256 | None
    vocabulary: int | None
    lowest: int
    highest: int
    shards: int
    documents: int | None
    tokens: int
    held_out_tokens: int
    left_out_tokens: int
    already: bool = False


class TokenizerMade(Spec):
    kind: Literal["tokenizer"] = "tokenizer"
    path: str
    vocabulary: int
    sha256: Sha256


TaskAnswer = Annotated[
    TaskProgress | TaskFailed | ShardsMade | TokenizerMade, Field(discriminator="kind")
]
TASK_ANSWER: TypeAdapter[TaskAnswer] = TypeAdapter(TaskAnswer)
