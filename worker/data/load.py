"""From the data section of a spec to what a run reads, whatever its sources.

Owns how sources come together; runs before the device is taken. Must not import JAX.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from worker.data.batches import Text, cut, held_out_batches, prepare_text
from worker.data.checks import Checks
from worker.data.corpus import load_corpus
from worker.data.mixture import Mixture, Schedule
from worker.data.samples import InMemory, Samples
from worker.data.shards import ShardFolder, open_shards
from worker.ends import Invalid
from worker.protocol import JobSpec
from worker.protocol import Mixture as MixtureSpec
from worker.protocol.data import DataSpec, MixturePart, PythonSource, Shards, TextFiles
from worker.protocol.shards import TokenizerRecord
from worker.tokenizers.plain import record_of

RECORD_FILE = "tokenizer.record.json"  # beside the tokenizer's own file


@dataclass(frozen=True)
class Part:
    """One source; bare shards do not tell their `tokenizer`."""

    train: Samples
    held_out: Samples
    text: str
    tokenizer: TokenizerRecord | None
    carried: Mapping[str, bytes]


def load_text(job: JobSpec, checks: Checks) -> Text:
    """Raises Invalid, naming the field, for what can never be trained on."""
    source, spec = job.data.source, job.data
    if isinstance(source, MixtureSpec):
        return _mixed(job, source, checks)
    if isinstance(source, Shards):
        part = _part(job, spec, checks)
        if len(part.train) < job.batch.sequences:
            raise Invalid(
                f"{source.path} has {len(part.train):,} samples of {job.model.context} tokens to"
                f" train on, but one batch takes {job.batch.sequences:,}",
                field="/data/source",
                hint="Prepare more text, or make batch.sequences or model.context smaller.",
            )
        held = held_out_batches(job, Mixture.of(part.held_out), _samples(part))
        return Text(part.text, Mixture.of(part.train), held, part.carried)
    text = prepare_text(job, load_corpus(spec))
    if spec.tokenizer is None:
        return text
    return Text(text.fingerprint, text.train, text.held_out, _carried_characters(spec))


def _samples(part: Part) -> str:
    return f"{len(part.held_out):,} samples"


def _mixed(job: JobSpec, source: MixtureSpec, checks: Checks) -> Text:
    parts: list[Part] = []
    shares: list[int] = []
    for number, (given, share) in enumerate(zip(source.parts, source.shares, strict=True)):
        if not share:
            continue
        with _within(f"/data/source/parts/{number}"):
            part = _part(job, _alone(job.data, given), checks)
            if not len(part.train):
                raise Invalid(
                    f"this part has not one sample of {job.model.context} tokens to train on",
                    field="/data/source",
                    hint="Give it more text, or the weight 0.",
                )
            _refuse_another(parts, part)
        parts.append(part)
        shares.append(share)
    schedule = Schedule(shares)
    held = Mixture(tuple(part.held_out for part in parts), schedule)
    told = hashlib.sha256(b"mixture\n")
    for share, part in zip(shares, parts, strict=True):
        told.update(f"{share} {part.text}\n".encode())
    return Text(
        fingerprint=told.hexdigest(),
        train=Mixture(tuple(part.train for part in parts), schedule),
        held_out=held_out_batches(job, held, " and ".join(map(_samples, parts))),
        carried=next((part.carried for part in parts if part.carried), {}),
    )


def _alone(spec: DataSpec, part: MixturePart) -> DataSpec:
    own = None if isinstance(part.source, Shards) else spec.tokenizer
    return DataSpec(source=part.source, tokenizer=own, held_out=spec.held_out)


def _part(job: JobSpec, spec: DataSpec, checks: Checks) -> Part:
    context = job.model.context
    match spec.source:
        case Shards() as source:
            folder = open_shards(source, job.model.vocab_size, context, checks)
            train, held = folder.split(context, spec.held_out)
            return Part(train, held, folder.text, folder.tokenizer, _carried(folder))
        case PythonSource() | TextFiles():
            corpus = load_corpus(spec)
            carried = {} if spec.tokenizer is None else _carried_characters(spec)
            return Part(
                InMemory(cut(corpus.train, context)),
                InMemory(cut(corpus.held_out, context)),
                corpus.fingerprint,
                record_of(spec.tokenizer),
                carried,
            )
        case MixtureSpec():
            raise TypeError("a part of a mixture is no mixture")


def _refuse_another(parts: list[Part], part: Part) -> None:
    """All ids of a mixture must mean the same; those of bare shards are believed to."""
    for other in parts:
        if other.tokenizer is None or part.tokenizer is None:
            continue
        if other.tokenizer.sha256 != part.tokenizer.sha256:
            raise Invalid(
                f"this part was tokenized otherwise ({_words(part.tokenizer)}) than an earlier one"
                f" ({_words(other.tokenizer)})",
                field="/data/source",
                hint="Prepare all parts of a mixture with the same tokenizer.",
            )


def _words(tokenizer: TokenizerRecord) -> str:
    return f"{tokenizer.kind}, {tokenizer.vocabulary:,} ids, {tokenizer.sha256[:12]}"


def _carried(folder: ShardFolder) -> dict[str, bytes]:
    if folder.tokenizer is None:
        return {}
    files = {RECORD_FILE: folder.tokenizer.model_dump_json(indent=1).encode()}
    if folder.tokenizer_file is not None:
        content = folder.tokenizer_file.read_bytes()
        if hashlib.sha256(content).hexdigest() != folder.tokenizer.sha256:
            raise Invalid(
                f"{folder.tokenizer_file} is not the tokenizer that its manifest names",
                field="/data/source/path",
                hint="Copy the folder again from where it was made.",
            )
        files[folder.tokenizer_file.name] = content
    return files


def _carried_characters(spec: DataSpec) -> dict[str, bytes]:
    assert spec.tokenizer is not None
    record = record_of(spec.tokenizer)
    return {
        RECORD_FILE: record.model_dump_json(indent=1).encode(),
        "tokenizer.json": spec.tokenizer.model_dump_json(indent=1).encode(),
    }


@contextlib.contextmanager
def _within(place: str) -> Generator[None]:
    """Names the fields of a part by their place in the whole spec."""
    try:
        yield
    except Invalid as error:
        field = (error.field or "").replace("/data/source", f"{place}/source", 1)
        raise Invalid(str(error), field=field, hint=error.hint or "") from error
