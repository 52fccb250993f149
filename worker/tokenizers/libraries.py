"""Tokenizers read from a file by the libraries that know it: tiktoken, SentencePiece, tokenizers.

Owns how each becomes ours. The file's hash is the tokenizer's identity.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from worker.protocol.shards import TokenizerRecord
from worker.tokenizers.base import IdArray, TokenizerError, as_text

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
END_OF_TEXT = "<|endoftext|>"
# What a tokenizer.json calls the marks around a document, the first that it has.
BEGINS = ("<|bos|>", "<s>", "<|begin_of_text|>", "[BOS]", "<bos>")
ENDS = ("<|eos|>", "</s>", END_OF_TEXT, "<|end_of_text|>", "[EOS]", "<eos>")
NAMES = {
    "tiktoken": "tokenizer.tiktoken",
    "sentencepiece": "tokenizer.model",
    "huggingface": "tokenizer.json",
}


def library(name: str) -> ModuleType:
    """Raises TokenizerError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TokenizerError(
            f"the package {name} is not installed", "Install it with: pip install longhaul[data]"
        ) from error


class TiktokenFile:
    """Ranks as OpenAI writes them, a token in base64 and its rank on each line, split like GPT-2's.

    Its vocabulary has the end of a text after the last rank.
    """

    def __init__(self, path: Path) -> None:
        tiktoken = library("tiktoken")
        content = path.read_bytes()
        ranks = _ranks(content, path)
        self._encoding = tiktoken.Encoding(
            path.name,
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: len(ranks)},
        )
        self.record = TokenizerRecord(
            kind="tiktoken",
            vocabulary=len(ranks) + 1,
            sha256=hashlib.sha256(content).hexdigest(),
            file=NAMES["tiktoken"],
            end=len(ranks),
        )

    def encode(self, document: bytes) -> IdArray:
        return np.asarray(self._encoding.encode_ordinary(as_text(document)), np.uint32)


def _ranks(content: bytes, path: Path) -> dict[bytes, int]:
    try:
        pairs = [line.split() for line in content.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise TokenizerError(
            f"{path} is no file of ranks: {error}",
            "Each line has a token in base64, a space and its rank, as in r50k_base.tiktoken.",
        ) from error
    if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"the ranks of {path} have gaps", "Take the file as it was published.")
    return ranks


class SentencePieceFile:
    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        try:
            self._processor: Any = library("sentencepiece").SentencePieceProcessor(
                model_proto=content
            )
        except RuntimeError as error:
            raise TokenizerError(
                f"{path} is no SentencePiece model", "Name the .model file of its training."
            ) from error
        begin, end = self._processor.bos_id(), self._processor.eos_id()
        self.record = TokenizerRecord(
            kind="sentencepiece",
            vocabulary=self._processor.get_piece_size(),
            sha256=hashlib.sha256(content).hexdigest(),
            file=NAMES["sentencepiece"],
            begin=begin if begin >= 0 else None,
            end=end if end >= 0 else None,
        )

    def encode(self, document: bytes) -> IdArray:
        return np.asarray(self._processor.encode(as_text(document)), np.uint32)


class HuggingFaceFile:
    """A `tokenizer.json`. Where a text spells out a special token, it is text like any other."""

    def __init__(self, path: Path, begin: str | None, end: str | None) -> None:
        content = path.read_bytes()
        try:
            self._tokenizer: Any = library("tokenizers").Tokenizer.from_buffer(content)
        except Exception as error:
            if isinstance(error, TokenizerError):
                raise
            raise TokenizerError(
                f"{path} is no tokenizer.json: {error}", "Name the file of a fast tokenizer."
            ) from error
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.record = TokenizerRecord(
            kind="huggingface",
            vocabulary=max(ids.values()) + 1,
            sha256=hashlib.sha256(content).hexdigest(),
            file=NAMES["huggingface"],
            begin=_mark(ids, begin, BEGINS, path),
            end=_mark(ids, end, ENDS, path),
        )

    def encode(self, document: bytes) -> IdArray:
        found = self._tokenizer.encode(as_text(document), add_special_tokens=False)
        return np.asarray(found.ids, np.uint32)


def _mark(ids: dict[str, int], named: str | None, usual: tuple[str, ...], path: Path) -> int | None:
    if named is None:
        return next((ids[name] for name in usual if name in ids), None)
    if named not in ids:
        raise TokenizerError(f"{path} has no token {named!r}", "Name one of its own tokens.")
    return ids[named]
