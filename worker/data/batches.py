"""Which tokens belong to which step.

Owns the law "batch = f(data plan, step)": random access, the same whatever the number of hosts.
Must not import JAX; grain draws the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import grain
import numpy as np
from numpy.typing import NDArray

from worker.data.corpus import Corpus, Tokens
from worker.data.mixture import Mixture
from worker.data.samples import InMemory, Rows
from worker.ends import Invalid
from worker.protocol import DataPlan, JobSpec

__all__ = ["Batch", "Batches", "Rows", "Text", "TrainingBatches", "cut", "prepare_text"]


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
    """Shuffles the samples of each source anew in each of its epochs; every one comes once in each.

    Which source stands where follows from the mixture's schedule alone. A batch at the end of an
    epoch is filled up from the next one.
    """

    def __init__(self, mixture: Mixture, plan: DataPlan, sequences: int) -> None:
        self._mixture = mixture
        self._plan = plan
        self._sequences = sequences
        self._orders = [
            grain.MapDataset.range(len(part)).seed(_seed(plan, number)).shuffle().repeat()
            for number, part in enumerate(mixture.parts)
        ]

    def at(self, step: int) -> Batch:
        first = self._plan.batch_index(step) * self._sequences
        places = map(self._mixture.schedule.at, range(first, first + self._sequences))
        rows = self._mixture.take([(part, self._sample(part, n)) for part, n in places])
        return Batch(step, rows, fingerprint(rows))

    def _sample(self, part: int, place: int) -> int:
        number = self._orders[part][place]
        assert number is not None, "only a filter would leave a place empty"
        return number


def _seed(plan: DataPlan, part: int) -> int:
    """grain's sampler takes unsigned 32-bit seeds only; each part has an order of its own."""
    if part == 0:
        return plan.seed % (1 << 32)
    drawn = hashlib.blake2b(f"{plan.seed} {part}".encode(), digest_size=4)
    return int.from_bytes(drawn.digest())


def fingerprint(rows: Rows) -> str:
    """16 hex digits over every token of a global batch."""
    little = np.ascontiguousarray(rows, dtype="<i4")
    return hashlib.blake2b(little.tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Text:
    """All that a run reads: the samples to train on and the fixed held-out batches.

    `fingerprint` names all of it; `carried` are the files, by name, of the tokenizer that travels
    with each checkpoint.
    """

    fingerprint: str
    train: Mixture
    held_out: tuple[Rows, ...]
    carried: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


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
    held = Mixture.of(InMemory(cut(corpus.held_out, context)))
    batches = held_out_batches(job, held, f"{len(corpus.held_out):,} tokens")
    return Text(corpus.fingerprint, Mixture.of(InMemory(train)), batches)


def held_out_batches(job: JobSpec, held: Mixture, has: str) -> tuple[Rows, ...]:
    """At most as many as the spec wants; `has` tells how much there is.

    Raises Invalid where there is to be an evaluation, and not one batch for it.
    """
    sequences = job.batch.sequences
    rows = held.in_order(job.eval.batches * sequences)
    count = 0 if rows is None else len(rows) // sequences
    if rows is not None and count:
        return tuple(np.split(rows[: count * sequences], count))
    if job.data.held_out > 0:
        raise Invalid(
            f"the held-out text has {has}, but one batch takes"
            f" {sequences * (job.model.context + 1):,}",
            field="/data/held_out",
            hint="Raise data.held_out, give more text, or set data.held_out to 0 for no eval.",
        )
    return ()
