"""Which tokens belong to which step.

Owns the law "batch = f(data plan, step)": random access, the same whatever the number of hosts.
Must not import JAX; grain draws the order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import grain
import numpy as np
from numpy.typing import NDArray

from worker.data.corpus import Corpus, Tokens
from worker.ends import Invalid
from worker.protocol import DataPlan, JobSpec

Rows = NDArray[np.int32]  # [sequences, context + 1]


@dataclass(frozen=True)
class Batch:
    """The global batch that takes the run from `step` to `step + 1`."""

    step: int
    rows: Rows
    fingerprint: str


class Batches(Protocol):
    def at(self, step: int) -> Batch: ...


def cut(tokens: Tokens, context: int) -> NDArray[np.uint16]:
    """Samples [n, context + 1], one after the other; the rest that fills none is left out."""
    width = context + 1
    count = len(tokens) // width
    return tokens[: count * width].reshape(count, width)


class TrainingBatches:
    """Shuffles the samples anew in each epoch; every sample comes once in each.

    A batch at the end of an epoch is filled up from the next one.
    """

    def __init__(self, samples: NDArray[np.uint16], plan: DataPlan, sequences: int) -> None:
        self._samples = samples
        self._plan = plan
        self._sequences = sequences
        # grain's sampler takes unsigned 32-bit seeds only.
        numbers = grain.MapDataset.range(len(samples)).seed(plan.seed % (1 << 32))
        self._order = numbers.shuffle().repeat()

    def at(self, step: int) -> Batch:
        first = self._plan.batch_index(step) * self._sequences
        places = range(first, first + self._sequences)
        chosen = np.array([self._order[place] for place in places], np.int64)
        rows = self._samples[chosen].astype(np.int32)
        return Batch(step, rows, fingerprint(rows))


def fingerprint(rows: Rows) -> str:
    """16 hex digits over every token of a global batch."""
    little = np.ascontiguousarray(rows, dtype="<i4")
    return hashlib.blake2b(little.tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Text:
    """All that a run reads: the samples to train on and the fixed held-out batches."""

    corpus: Corpus
    train: NDArray[np.uint16]  # [samples, context + 1]
    held_out: tuple[Rows, ...]


def prepare_text(job: JobSpec, corpus: Corpus) -> Text:
    """Cuts the text into samples. Raises Invalid when it is shorter than one batch."""
    sequences, context = job.batch.sequences, job.model.context
    train = cut(corpus.train, context)
    if len(train) < sequences:
        raise Invalid(
            f"the text has {len(corpus.train):,} tokens to train on, but one batch takes"
            f" {sequences} sequences of {context + 1}: {sequences * (context + 1):,} tokens",
            field="/data/source",
            hint="Give more text, or make batch.sequences or model.context smaller.",
        )
    held = cut(corpus.held_out, context)
    count = min(job.eval.batches, len(held) // sequences)
    if job.data.held_out > 0 and count == 0:
        raise Invalid(
            f"the held-out text has {len(corpus.held_out):,} tokens, but one batch takes"
            f" {sequences * (context + 1):,}",
            field="/data/held_out",
            hint="Raise data.held_out, give more text, or set data.held_out to 0 for no eval.",
        )
    fixed = held[: count * sequences].astype(np.int32)
    return Text(corpus, train, tuple(np.split(fixed, count)) if count else ())
