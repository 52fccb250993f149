"""What every tokenizer can do, and how it says that it can not."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worker.protocol.shards import TokenizerRecord

IdArray = NDArray[np.uint32]


class TokenizerError(Exception):
    """A tokenizer cannot be had, or cannot read a text; `hint` says what to do."""

    def __init__(self, error: str, hint: str) -> None:
        super().__init__(error)
        self.hint = hint


class Tokenizer(Protocol):
    @property
    def record(self) -> TokenizerRecord: ...

    def encode(self, document: bytes) -> IdArray:
        """Without the ids around a document. Raises TokenizerError, with the place in it."""
        ...


def as_text(document: bytes) -> str:
    """Raises TokenizerError for what is not UTF-8."""
    try:
        return document.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"byte {error.start:,} is not UTF-8",
            "Bring the file into UTF-8, or use the tokenizer bytes.",
        ) from error
