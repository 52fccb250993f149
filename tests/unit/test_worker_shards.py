"""Shards as a source: read where they lie, and refused by name where they cannot be trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.presets import PRESETS
from tests.fakes.shards import bare, prepared
from tests.fakes.tiny import tiny_job, write_text
from worker.data import checks
from worker.data.batches import Text, TrainingBatches
from worker.data.checks import Checks
from worker.data.load import RECORD_FILE, load_text
from worker.data.samples import Stream
from worker.ends import Invalid
from worker.protocol import DataPlan, JobSpec
from worker.protocol.shards import MANIFEST, held_apart, samples_in

IDS = np.arange(3000, dtype=np.uint16) % 257


def job(folder: Path, held_out: float = 0.1, **changes: Any) -> JobSpec:
    source = {"kind": "shards", "path": str(folder)} | changes.pop("source", {})
    return tiny_job(folder, data={"source": source, "held_out": held_out}, **changes)


def mixed(*parts: tuple[float, Path], **changes: Any) -> JobSpec:
    given = [{"weight": w, "source": {"kind": "shards", "path": str(p)}} for w, p in parts]
    data = {"source": {"kind": "mixture", "parts": given}, "held_out": 0.2}
    return tiny_job(parts[0][1], data=data, **changes)


def refusal(made: JobSpec) -> Invalid:
    with pytest.raises(Invalid) as refused:
        load_text(made, Checks())
    assert refused.value.hint
    return refused.value


def batches(made: JobSpec, text: Text) -> list[str]:
    found = TrainingBatches(text.train, DataPlan(seed=made.seed), made.batch.sequences)
    return [found.at(step).fingerprint for step in range(12)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 5,000 tokens with a manifest, to be copied."""
    root = tmp_path_factory.mktemp("made")
    prepared(write_text(root / "text"), root / "shards", shard_tokens=5000, held_out=0.4)
    return root / "shards"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in made.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def change_manifest(folder: Path, change: Any) -> None:
    place = folder / MANIFEST
    manifest = json.loads(place.read_text())
    change(manifest)
    place.write_text(json.dumps(manifest))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(0, 1),
)
def test_a_stream_over_files_is_one_stream(sizes: list[int], stride: int, more: int) -> None:
    whole, width = np.arange(sum(sizes), dtype=np.uint16), stride + more
    files = np.split(whole, np.cumsum(sizes)[:-1])
    stream = Stream(files, width, stride)
    assert len(stream) == samples_in(len(whole), width, stride)
    numbers = range(len(stream))
    expected = [whole[n * stride : n * stride + width].tolist() for n in numbers]
    assert stream.take(numbers).tolist() == expected


def test_slms_tokens_wrap_in_their_last_batch() -> None:
    spec = PRESETS["slm-124m"].spec
    samples = samples_in(9_940_492_288, spec.model.context + 1, spec.model.context)
    assert -(-samples // spec.batch.sequences) == spec.steps == 37_920
    assert samples % spec.batch.sequences != 0


@pytest.mark.parametrize(
    ("samples", "share", "held"), [(100, 0.02, 2), (100, 0.07, 7), (3, 0.1, 1), (5, 0.0, 0)]
)
def test_a_share_is_held_out_to_the_sample(samples: int, share: float, held: int) -> None:
    assert held_apart(samples, share) == held


def test_prepared_shards_are_read_with_what_they_hold_out(folder: Path) -> None:
    given = job(folder)
    text = load_text(given, Checks())
    assert len(text.held_out) == given.eval.batches
    assert set(text.carried) == {RECORD_FILE}
    assert len(set(batches(given, text))) == 12
    alone = load_text(job(folder, held_out=0), Checks())
    assert alone.held_out == ()
    assert batches(given, alone) == batches(given, text)


def test_where_shards_lie_and_what_they_are_called_makes_no_difference(
    folder: Path, tmp_path: Path
) -> None:
    before = load_text(job(folder), Checks())
    other = folder.rename(tmp_path / "elsewhere")
    after = load_text(job(other), Checks())
    assert before.fingerprint == after.fingerprint
    assert batches(job(other), after) == batches(job(other), before)


def test_bare_files_hold_out_their_last_samples_or_what_is_called_val(tmp_path: Path) -> None:
    tail = load_text(job(bare(tmp_path / "a", part0=IDS[:1700], part1=IDS[1700:])), Checks())
    count = samples_in(3000, 17, 16)
    assert len(tail.train.parts[0]) == count - held_apart(count, 0.1)
    own = load_text(job(bare(tmp_path / "b", train=IDS[:2000], val=IDS[2000:])), Checks())
    assert len(own.train.parts[0]) == samples_in(2000, 17, 16)
    assert own.held_out[0][0].tolist() == IDS[2000:2017].tolist()
    assert not own.carried


def test_the_header_of_llm_c_is_known(tmp_path: Path) -> None:
    folder = bare(tmp_path / "c")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(IDS)
    path = folder / "fineweb_train_000001.bin"
    path.write_bytes(header.tobytes() + IDS.tobytes())
    plain = load_text(job(bare(tmp_path / "d", train=IDS)), Checks())
    assert load_text(job(folder), Checks()).fingerprint == plain.fingerprint
    path.write_bytes(path.read_bytes()[:-2])
    assert "its header tells of 3,000 tokens" in str(refusal(job(folder)))


def test_bare_files_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    folder = bare(tmp_path / "e", train=IDS)
    (folder / "train.bin").write_bytes(IDS.tobytes()[:-1])
    assert "train.bin has 5,999 bytes" in str(refusal(job(folder)))
    (folder / "train.bin").write_bytes(b"")
    assert "has 0 bytes" in str(refusal(job(folder)))
    bare(folder, train=np.append(IDS, np.uint16(300)))
    refused = refusal(job(folder))
    assert "train.bin has id 300, and the model has 257" in str(refused)
    assert refused.field == "/data/source/path"
    bare(folder, train=IDS)
    (folder / "train.bin").rename(folder / "val.bin")
    assert "none is left to train on" in str(refusal(job(folder)))
    (folder / "val.bin").unlink()
    assert "neither a manifest.json nor files like *.bin" in str(refusal(job(folder)))
    assert "is no folder on this host" in str(refusal(job(folder / "absent")))
    short = bare(tmp_path / "f", train=IDS[:70])
    assert "has 3 samples of 16 tokens to train on" in str(refusal(job(short)))


def _flip(folder: Path) -> None:
    path = folder / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[101] ^= 1
    path.write_bytes(content)


def _lose_a_byte(folder: Path) -> None:
    path = folder / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])


def _lie(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest["shards"][0].update(highest=200))


def _reach_out(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest["shards"][0].update(file="../secret.bin"))


def _link_out(folder: Path) -> None:
    outside = folder.parent / "outside.bin"
    (folder / "train-00000.bin").rename(outside)
    (folder / "train-00000.bin").symlink_to(outside)


def _beyond(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest["shards"][0].update(highest=400))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_flip, "train-00000.bin has another hash than its manifest says"),
        (_lose_a_byte, "train-00000.bin has 9,999 bytes, and its manifest says 10,000"),
        (lambda folder: (folder / "train-00001.bin").unlink(), "train-00001.bin is missing"),
        (_lie, "to 256, and its manifest says"),
        (_beyond, "has id 400, beyond the tokenizer's 257"),
        (_reach_out, "cannot be used: shards.0.file"),
        (_link_out, "is a link that leads out"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be used"),
    ],
)
def test_a_folder_that_is_not_what_its_manifest_says_is_refused(
    folder: Path, spoil: Any, words: str
) -> None:
    spoil(folder)
    assert words in str(refusal(job(folder)))


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    for size in (300, 384):
        load_text(job(folder, model={"vocab_size": size}), Checks())
    for size in (256, 385, 32_000):
        refused = refusal(job(folder, model={"vocab_size": size}))
        assert refused.field == "/model/vocab_size"
        assert "has 257 ids" in str(refused)


def test_a_manifest_can_be_pinned(folder: Path) -> None:
    refused = refusal(job(folder, source={"manifest_sha256": "0" * 64}))
    assert refused.field == "/data/source/manifest_sha256"


def test_packed_rows_need_their_context(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    prepared(text, tmp_path / "rows", packing="best-fit", context=16, held_out=0.2)
    found = load_text(job(tmp_path / "rows"), Checks())
    rows = found.train.parts[0].take(range(len(found.train.parts[0])))
    assert (rows[:, 0] == 256).all()
    assert refusal(job(tmp_path / "rows", model={"context": 32})).field == "/model/context"


def test_a_mixture_wants_one_tokenizer_and_names_the_part_at_fault(
    folder: Path, tmp_path: Path
) -> None:
    characters = tmp_path / "tokenizer.json"
    charset = "".join(chr(number) for number in range(32, 127)) + "\n"
    characters.write_text(json.dumps({"kind": "characters", "charset": charset}))
    prepared(write_text(tmp_path / "t"), tmp_path / "other", tokenizer=str(characters))
    alone = load_text(job(tmp_path / "other", model={"vocab_size": 96}), Checks())
    assert set(alone.carried) == {RECORD_FILE, "tokenizer.json"}
    bare(tmp_path / "bare", train=IDS)
    load_text(mixed((70, folder), (30, tmp_path / "bare")), Checks())
    load_text(mixed((70, folder), (0, tmp_path / "absent")), Checks())
    refused = refusal(mixed((70, folder), (30, tmp_path / "absent")))
    assert refused.field == "/data/source/parts/1/source/path"
    for one in (folder, tmp_path / "other"):
        change_manifest(one, lambda manifest: manifest["tokenizer"].update(vocabulary=260))
    refused = refusal(mixed((70, folder), (30, tmp_path / "other"), model={"vocab_size": 260}))
    assert refused.field == "/data/source/parts/1/source"
    assert "tokenized otherwise" in str(refused)


def test_what_was_read_once_is_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    see = checks.see

    def counting(file: checks.IdFile) -> checks.Seen:
        read.append(file.path.name)
        return see(file)

    monkeypatch.setattr(checks, "see", counting)
    kept = tmp_path / "kept.json"
    first = load_text(job(folder), Checks(kept))
    assert read
    read.clear()
    assert load_text(job(folder), Checks(kept)).fingerprint == first.fingerprint
    assert read == []
    path = folder / "train-00000.bin"
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    load_text(job(folder), Checks(kept))
    assert read == ["train-00000.bin"]
    kept.write_text("not JSON")
    load_text(job(folder), Checks(kept))
    assert len(read) > 1
