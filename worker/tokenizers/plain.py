"""The tokenizers that need no library: bytes, and the characters of a charset."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np

from worker.protocol.data import BYTE_VOCABULARY, Characters
from worker.protocol.shards import TokenizerRecord
from worker.tokenizers.base import IdArray, TokenizerError, as_text

END_OF_DOCUMENT = 256
CHARACTERS_FILE = "tokenizer.json"
_NONE = np.uint32(0xFFFFFFFF)


def record_of(characters: Characters | None) -> TokenizerRecord:
    """Without one, of bytes. The identity of characters is the hash of the file that tells them."""
    if characters is None:
        return TokenizerRecord(
            kind="bytes",
            vocabulary=BYTE_VOCABULARY,
            sha256=hashlib.sha256(b"bytes").hexdigest(),
            end=END_OF_DOCUMENT,
        )
    line_break = characters.charset.find("\n")
    return TokenizerRecord(
        kind="characters",
        vocabulary=len(characters.charset),
        sha256=hashlib.sha256(characters.model_dump_json(indent=1).encode()).hexdigest(),
        file=CHARACTERS_FILE,
        end=line_break if line_break >= 0 else None,
    )


class Bytes:
    """The 256 byte values, and a mark for the end of a document."""

    record = record_of(None)

    def encode(self, document: bytes) -> IdArray:
        return np.frombuffer(document, np.uint8).astype(np.uint32)


class CharacterTokenizer:
    def __init__(self, characters: Characters) -> None:
        self._characters = characters

    @property
    def record(self) -> TokenizerRecord:
        return record_of(self._characters)

    def as_file(self) -> bytes:
        return self._characters.model_dump_json(indent=1).encode()

    @cached_property
    def _ids(self) -> IdArray:
        """The id of each code point up to the charset's highest."""
        points = [ord(c) for c in self._characters.charset]
        ids = np.full(max(points) + 2, _NONE, np.uint32)
        ids[points] = np.arange(len(points), dtype=np.uint32)
        return ids

    def encode(self, document: bytes) -> IdArray:
        text = as_text(document)
        if self._characters.lowercase:
            text = text.lower()
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        known = ids != _NONE
        if known.all():
            return ids
        if self._characters.others == "drop":
            return ids[known]
        place = int(np.argmin(known))
        line = text.count("\n", 0, place) + 1
        raise TokenizerError(
            f"line {line} has {text[place]!r}, which is not in the charset",
            "Add it to the charset, or set others: drop.",
        )
