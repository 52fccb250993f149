"""What is read, what is held out, and which batch belongs to which step."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.tiny import tiny_job, write_text
from worker.data.batches import Batch, TrainingBatches, cut, prepare_text
from worker.data.corpus import (
    Document,
    load_corpus,
    split_by_file,
    tokenize,
)
from worker.data.mixture import Mixture
from worker.data.prefetch import Prefetcher
from worker.data.samples import InMemory
from worker.ends import Invalid
from worker.protocol import DataPlan, DataSpec, PythonSource, Skip, TextFiles
from worker.tokenizers.plain import END_OF_DOCUMENT


def text_spec(path: Path, held_out: float = 0.2) -> DataSpec:
    return DataSpec(source=TextFiles(path=str(path)), held_out=held_out)


def samples(count: int, width: int = 3) -> Mixture:
    """Each sample is its own number, repeated."""
    return Mixture.of(InMemory(np.repeat(np.arange(count, dtype=np.uint16)[:, None], width, 1)))


def drawn(batches: TrainingBatches, steps: range) -> list[int]:
    return [int(row[0]) for step in steps for row in batches.at(step).rows]


def test_documents_become_bytes_with_an_end_between() -> None:
    tokens = tokenize([Document("a", b"\x00\xff"), Document("b", b""), Document("c", b"A")])
    assert tokens.tolist() == [0, 255, END_OF_DOCUMENT, END_OF_DOCUMENT, 65, END_OF_DOCUMENT]


def test_python_source_is_this_interpreter_without_its_tests() -> None:
    corpus = load_corpus(DataSpec(source=PythonSource(), held_out=0.02))
    assert len(corpus.train) > 5_000_000
    assert 0.005 < len(corpus.held_out) / len(corpus.train) < 0.06
    text = corpus.train.astype(np.uint8).tobytes()
    assert b"def namedtuple(" in text + corpus.held_out.astype(np.uint8).tobytes()
    assert b"class TestLoadTestsProtocol" not in text
    assert load_corpus(DataSpec()).fingerprint == corpus.fingerprint


def test_held_out_files_are_no_training_files_and_depend_on_names_only() -> None:
    documents = [Document(f"f{number}", b"x") for number in range(400)]
    train, held = split_by_file(documents, 0.1)
    names = {document.name for document in train}, {document.name for document in held}
    assert names[0].isdisjoint(names[1])
    assert names[0] | names[1] == {document.name for document in documents}
    assert 20 <= len(held) <= 65
    fewer = split_by_file(documents[:200], 0.1)[1]
    assert [d.name for d in fewer] == [d.name for d in held if int(d.name[1:]) < 200]


@pytest.mark.parametrize("share", [1e-9, 0.999999])
def test_neither_side_of_the_split_is_empty(share: float) -> None:
    train, held = split_by_file([Document("a", b"x"), Document("b", b"y")], share)
    assert (len(train), len(held)) == (1, 1)


def test_single_file_holds_out_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes(bytes(range(100)))
    corpus = load_corpus(text_spec(path, 0.1))
    assert corpus.train.tolist() == [*range(90), END_OF_DOCUMENT]
    assert corpus.held_out.tolist() == [*range(90, 100), END_OF_DOCUMENT]


def test_folder_is_read_in_name_order_and_by_suffix(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("2")
    (tmp_path / "c.md").write_text("3")
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "skipped.bin").write_text("x")
    corpus = load_corpus(text_spec(tmp_path, 0.0))
    text = bytes(int(token) for token in corpus.train if token < 256)
    assert text == b"123"
    assert (corpus.files, len(corpus.held_out)) == (3, 0)


def test_link_out_of_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("not yours")
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "in.txt").write_text("fine")
    (folder / "again.txt").symlink_to(folder / "in.txt")
    assert load_corpus(text_spec(folder)).files == 2
    (folder / "out.txt").symlink_to(outside)
    with pytest.raises(Invalid, match=r"out\.txt is a link that leads out") as refused:
        load_corpus(text_spec(folder))
    assert refused.value.field == "/data/source/path"


@pytest.mark.parametrize("name", ["absent", "absent.txt"])
def test_missing_path_names_the_field(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match="No such file") as refused:
        load_corpus(text_spec(tmp_path / name))
    assert refused.value.field == "/data/source/path"
    assert refused.value.hint


def test_folder_without_text_says_which_suffixes_count(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"no file that ends in \.txt, \.md, \.py"):
        load_corpus(text_spec(tmp_path))


def test_text_shorter_than_a_batch_is_invalid(tmp_path: Path) -> None:
    job = tiny_job(write_text(tmp_path, files=2, words=3))
    with pytest.raises(Invalid, match="one batch takes") as refused:
        prepare_text(job, load_corpus(job.data))
    assert refused.value.field == "/data/source"


def test_held_out_text_shorter_than_a_batch_is_invalid(tmp_path: Path) -> None:
    write_text(tmp_path)
    job = tiny_job(tmp_path, batch={"sequences": 400})
    job = job.model_copy(update={"data": text_spec(tmp_path, 1e-9)})
    with pytest.raises(Invalid, match="held-out") as refused:
        prepare_text(job, load_corpus(job.data))
    assert refused.value.field == "/data/held_out"
    without = job.model_copy(update={"data": text_spec(tmp_path, 0.0)})
    assert prepare_text(without, load_corpus(without.data)).held_out == ()


def test_samples_cover_the_text_once() -> None:
    rows = cut(np.arange(23, dtype=np.uint16), context=4)
    assert rows.tolist() == np.arange(20).reshape(4, 5).tolist()


def test_each_epoch_has_each_sample_once_in_an_order_of_its_own() -> None:
    batches = TrainingBatches(samples(12), DataPlan(seed=7), sequences=4)
    first, second = drawn(batches, range(3)), drawn(batches, range(3, 6))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    other = TrainingBatches(samples(12), DataPlan(seed=8), sequences=4)
    assert drawn(other, range(3)) != first


def test_batch_at_an_epochs_end_is_filled_from_the_next() -> None:
    seen = drawn(TrainingBatches(samples(10), DataPlan(seed=7), sequences=4), range(5))
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


def test_any_batch_can_be_made_by_itself() -> None:
    plan = DataPlan(seed=7)
    in_order = [TrainingBatches(samples(50), plan, 4).at(step) for step in range(30)]
    alone = TrainingBatches(samples(50), plan, 4).at(29)
    assert np.array_equal(alone.rows, in_order[29].rows)
    assert alone.fingerprint == in_order[29].fingerprint
    assert len({batch.fingerprint for batch in in_order}) == 30


def test_skipped_batches_are_never_trained_and_the_rest_moves_up() -> None:
    plain = TrainingBatches(samples(60), DataPlan(seed=7), 4)
    plan = DataPlan(seed=7, skips=(Skip(first=2, last=4, reason="spike"),))
    skipping = TrainingBatches(samples(60), plan, 4)
    assert drawn(skipping, range(2)) == drawn(plain, range(2))
    assert drawn(skipping, range(2, 8)) == drawn(plain, range(5, 11))


class Failing:
    def at(self, step: int) -> Batch:
        if step == 2:
            raise OSError("the disk went away")
        return Batch(step, np.zeros((1, 2), np.int32), str(step))


def test_prefetcher_hands_out_in_order_and_raises_where_it_failed() -> None:
    with Prefetcher(Failing(), 0, 5) as batches:
        assert [batches.next().step for _ in range(2)] == [0, 1]
        with pytest.raises(OSError, match="went away"):
            batches.next()


def test_prefetcher_stays_within_its_bound() -> None:
    asked: list[int] = []

    class Counting:
        def at(self, step: int) -> Batch:
            asked.append(step)
            return Batch(step, np.zeros((1, 2), np.int32), str(step))

    with Prefetcher(Counting(), 0, 1000, ahead=3) as batches:
        batches.next()
        deadline = time.monotonic() + 5
        while len(asked) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert len(asked) == 5  # one handed out, three ready, one waiting for room
