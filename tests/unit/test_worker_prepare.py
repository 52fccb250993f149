"""Preparing shards: the same bytes whatever the workers and wherever it was killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.shards import content, prepared
from worker.data.prepare.inputs import PrepareError
from worker.data.prepare.packing import best_fit
from worker.data.prepare.plan import WORK
from worker.tokenizers.base import TokenizerError

MARK = 9
SETTINGS: dict[str, dict[str, Any]] = {
    "chunks": {"shard_tokens": 700, "held_out": 0.3},
    "best-fit": {"shard_tokens": 700, "held_out": 0.3, "packing": "best-fit", "context": 20},
}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("one document " * 40)
    (folder / "b.md").write_text("")
    (folder / "sub" / "c.txt").write_text("with ümläuts and more " * 30)
    lines = [json.dumps({"text": f"line {n} " * (n % 9), "id": n}) for n in range(60)]
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n\n")
    (folder / "ignored.csv").write_text("x")
    return folder


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What an undisturbed preparation makes, by packing."""
    root = tmp_path_factory.mktemp("whole")
    for name, how in SETTINGS.items():
        prepared(text, root / name, **how)
    return {name: content(root / name) for name in SETTINGS}


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.sampled_from(sorted(SETTINGS)))
def test_a_preparation_killed_anywhere_makes_the_same_bytes(
    text: Path,
    whole: dict[str, dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    how: str,
) -> None:
    """Killed before the n-th time that something is made to last, again and again."""
    out = tmp_path_factory.mktemp("out") / "shards"
    fsync = os.fsync
    for after in kills:
        left = iter(range(after))

        def dying(descriptor: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed
            fsync(descriptor)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", dying)
            try:
                prepared(text, out, **SETTINGS[how])
            except Killed:
                continue
    prepared(text, out, **SETTINGS[how])
    assert content(out) == whole[how]
    shutil.rmtree(out)


def test_several_processes_make_the_same_bytes(
    text: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    made = prepared(text, tmp_path / "out", workers=2, **SETTINGS["best-fit"])
    assert content(tmp_path / "out") == whole["best-fit"]
    assert (made.documents, made.already) == (63, False)


def test_one_stream_holds_every_document_once(text: Path, tmp_path: Path) -> None:
    made = prepared(text, tmp_path / "out")
    ids = np.fromfile(tmp_path / "out" / "train-00000.bin", "<u2")
    documents = bytes(ids[ids < 256].astype(np.uint8)).count(b"line 10 ")
    assert (made.tokens, int((ids == 256).sum()), documents) == (len(ids), 63, 1)
    expected = [(text / "a.txt").read_bytes(), b"", (text / "d.jsonl").read_bytes()]
    assert bytes(ids[: len(expected[0])].astype(np.uint8)) == expected[0]


def test_a_second_call_finds_that_all_is_made(text: Path, tmp_path: Path) -> None:
    first = prepared(text, tmp_path / "out", shard_tokens=900)
    again = prepared(text, tmp_path / "out", shard_tokens=900, workers=3)
    assert again == first.model_copy(update={"already": True})
    with pytest.raises(PrepareError, match="other inputs or settings"):
        prepared(text, tmp_path / "out", shard_tokens=901)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "thesis.tex").write_text("mine")
    with pytest.raises(PrepareError, match=r"it holds thesis\.tex"):
        prepared(text, tmp_path / "strange")


def test_an_input_that_changed_meanwhile_is_named(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tmp_path / "in"
    shutil.copytree(text, inputs)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("worker.data.prepare.parts.os.fsync", full)
        patch.setattr("worker.data.prepare.plan.write_atomically", Path.write_text)
        with pytest.raises(OSError, match="No space left"):
            prepared(inputs, tmp_path / "out")
    assert (tmp_path / "out" / WORK).is_dir()
    os.utime(inputs / "d.jsonl", ns=(1, 1))
    with pytest.raises(PrepareError, match=r"d\.jsonl has changed since"):
        prepared(inputs, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "given", "changes", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', {}, r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', {}, r"a\.jsonl, line 1 has no text in 'text'"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', {}, "half of a surrogate pair"),
        ("a.txt", b"", {"held_out": 0.999}, "nothing in these inputs to train on"),
        ("a.csv", b"x", {}, r"nothing below .* ends in \.txt"),
        ("a.txt", b"x", {"packing": "best-fit"}, "needs the context"),
        ("a.txt", b"x", {"packing": "best-fit", "context": 9, "shard_tokens": 5}, "holds no row"),
    ],
)
def test_inputs_that_cannot_be_are_refused_by_their_place(
    tmp_path: Path, name: str, given: bytes, changes: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(given)
    with pytest.raises(PrepareError, match=words):
        prepared(folder, tmp_path / "out", **changes)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.txt").write_text("not yours")
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(PrepareError, match=r"a\.txt is a link that leads out"):
        prepared(tmp_path / "in", tmp_path / "out")


def test_characters_are_prepared_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Abba\ncab")
    tokenizer = tmp_path / "characters.json"

    def characters(**fields: Any) -> str:
        tokenizer.write_text(json.dumps({"kind": "characters", "charset": "\nab"} | fields))
        return str(tokenizer)

    with pytest.raises(PrepareError, match=r"a\.txt: line 2 has 'c', which is not in the charset"):
        prepared(tmp_path / "in", tmp_path / "a", tokenizer=characters(lowercase=True))
    given = characters(lowercase=True, others="drop")
    made = prepared(tmp_path / "in", tmp_path / "b", tokenizer=given)
    assert made.vocabulary == 3
    ids = np.fromfile(tmp_path / "b" / "train-00000.bin", "<u2").tolist()
    assert ids == [1, 2, 2, 1, 0, 1, 2, 0]
    with pytest.raises(TokenizerError, match="has 'a' twice"):
        prepared(tmp_path / "in", tmp_path / "c", tokenizer=characters(charset="aa"))
    how = {"packing": "best-fit", "context": 4, "tokenizer": characters(charset="ab")}
    with pytest.raises(PrepareError, match="no mark for where a document begins"):
        prepared(tmp_path / "in", tmp_path / "d", **how)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=40), st.integers(2, 12))
def test_packed_rows_are_full_begin_with_the_mark_and_lose_nothing(
    lengths: list[int], row: int
) -> None:
    """What is left over is less than a row; each document's own tokens stay in their order."""
    documents = [
        np.array([MARK, *(10 + 100 * n + k for k in range(length))], np.uint32)
        for n, length in enumerate(lengths)
    ]
    *rows, left_out = best_fit(documents, MARK, row)
    assert isinstance(left_out, int)
    assert left_out < row
    seen: dict[int, list[int]] = {}
    for packed in rows:
        assert isinstance(packed, np.ndarray)
        assert len(packed) == row
        assert packed[0] == MARK
        for token in packed[packed != MARK].tolist():
            seen.setdefault((token - 10) // 100, []).append((token - 10) % 100)
    for number, tokens in seen.items():
        assert len(set(tokens)) == len(tokens) <= lengths[number]
    assert sum(map(len, seen.values())) >= sum(lengths) - left_out
