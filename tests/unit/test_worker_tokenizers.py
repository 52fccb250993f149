"""Tokenizers by file: what they read, what they are called by, and what is refused."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.shards import prepared
from tests.fakes.tiny import write_text
from worker.tokenizers import libraries
from worker.tokenizers.base import TokenizerError
from worker.tokenizers.load import open_tokenizer
from worker.tokenizers.training import train_bpe, train_sentencepiece

TEXT = "save the step, lose a run; save the run, step on. " * 40


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason="needs longhaul[data]")


def test_bytes_are_themselves() -> None:
    tokenizer = open_tokenizer("bytes")
    assert tokenizer.encode(b"\x00a\xff").tolist() == [0, 97, 255]
    record = tokenizer.record
    assert (record.vocabulary, record.begin, record.end, record.file) == (257, None, 256, None)


def test_characters_beyond_the_charset_are_found_at_any_code_point(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"kind": "characters", "charset": "aé"}))
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.encode("éa".encode()).tolist() == [1, 0]
    for strange in ("b", "🙂", "\x00"):
        with pytest.raises(TokenizerError, match="line 1 has"):
            tokenizer.encode(f"a{strange}".encode())
    with pytest.raises(TokenizerError, match="byte 1 is not UTF-8"):
        tokenizer.encode(b"a\xff")


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("x.json", "{", "is not JSON"),
        ("x.json", '{"kind": "characters"}', "Field required"),
        ("x.bin", "", "there is no tokenizer"),
        ("absent.json", None, "cannot be read"),
    ],
)
def test_files_that_are_no_tokenizer(
    tmp_path: Path, name: str, given: str | None, words: str
) -> None:
    if given is not None:
        (tmp_path / name).write_text(given)
    with pytest.raises(TokenizerError, match=words):
        open_tokenizer(str(tmp_path / name))


def test_a_library_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    (tmp_path / "x.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match="sentencepiece is not installed") as refused:
        open_tokenizer(str(tmp_path / "x.model"))
    assert "longhaul[data]" in refused.value.hint


@needs("tiktoken")
def test_ranks_are_read_as_tiktoken_reads_them(tmp_path: Path) -> None:
    tokens = [bytes([value]) for value in range(256)] + [b"th", b"the"]
    lines = [f"{base64.b64encode(t).decode()} {rank}" for rank, t in enumerate(tokens)]
    path = tmp_path / "own.tiktoken"
    path.write_text("\n".join(lines))
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.encode(b"the t").tolist() == [257, 32, 116]
    assert (tokenizer.record.vocabulary, tokenizer.record.end) == (259, 258)
    spelled = tokenizer.encode(b"<|endoftext|>").tolist()
    assert 258 not in spelled
    path.write_text("\n".join(lines[:-2] + lines[-1:]))
    with pytest.raises(TokenizerError, match="have gaps"):
        open_tokenizer(str(path))


@needs("tokenizers")
def test_a_bpe_is_trained_alike_each_time_and_prepares_shards(tmp_path: Path) -> None:
    made = train_bpe(iter([TEXT, TEXT.upper()]), 280)
    assert train_bpe(iter([TEXT, TEXT.upper()]), 280) == made
    path = tmp_path / "tokenizer.json"
    path.write_bytes(made)
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.record.vocabulary == 280
    assert tokenizer.record.end == 0
    ids = tokenizer.encode(TEXT.encode())
    assert len(ids) < len(TEXT) * 2 / 3
    assert 0 not in tokenizer.encode(b"<|endoftext|>")
    shards = prepared(write_text(tmp_path / "text", files=3), tmp_path / "out", tokenizer=str(path))
    assert shards.vocabulary == 280
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == made
    named = open_tokenizer(str(path), begin="<|endoftext|>")
    assert named.record.begin == 0
    with pytest.raises(TokenizerError, match="has no token '<bos>'"):
        open_tokenizer(str(path), begin="<bos>")
    with pytest.raises(TokenizerError, match="257 ids or more"):
        train_bpe(iter([TEXT]), 100)


@needs("sentencepiece")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sentencepiece_is_trained_and_read(tmp_path: Path) -> None:
    path = tmp_path / "own.model"
    path.write_bytes(train_sentencepiece(iter([TEXT] * 3), 275))
    record = open_tokenizer(str(path)).record
    assert (record.kind, record.vocabulary, record.begin, record.end) == (
        "sentencepiece",
        275,
        1,
        2,
    )
    ids = open_tokenizer(str(path)).encode(TEXT.encode())
    assert 0 < len(ids) <= len(TEXT)
    with pytest.raises(TokenizerError, match="cannot be trained"):
        train_sentencepiece(iter(["too little"]), 5000)
    path.write_bytes(b"nonsense")
    with pytest.raises(TokenizerError, match="no SentencePiece model"):
        open_tokenizer(str(path))


@needs("pyarrow")
def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    (tmp_path / "in").mkdir()
    table = arrow.table({"text": [f"row {n}" for n in range(2500)], "n": list(range(2500))})
    parquet.write_table(table, tmp_path / "in" / "a.parquet")
    made = prepared(tmp_path / "in", tmp_path / "out")
    assert made.documents == 2500
    with pytest.raises(Exception, match="has no column 'body'"):
        prepared(tmp_path / "in", tmp_path / "b", field="body")
    with pytest.raises(Exception, match="row 1 has no text in 'n'"):
        prepared(tmp_path / "in", tmp_path / "c", field="n")
    (tmp_path / "in" / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(Exception, match="is no parquet file"):
        prepared(tmp_path / "in", tmp_path / "d")
