"""A tokenizer of one's own, trained on one's own text."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.tokenizers.base import TokenizerError
from worker.tokenizers.libraries import END_OF_TEXT, library

BYTES_AND_MARK = 257


def train_bpe(texts: Iterator[str], vocabulary: int) -> bytes:
    """A byte-level BPE as `tokenizer.json`; the mark for the end of a text is its id 0."""
    if vocabulary < BYTES_AND_MARK:
        raise TokenizerError(
            f"a byte-level BPE has {BYTES_AND_MARK} ids or more: bytes and a mark",
            f"Set --vocabulary to {BYTES_AND_MARK} or more.",
        )
    tokenizers: Any = library("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made.to_str(pretty=True).encode()


def train_sentencepiece(texts: Iterator[str], vocabulary: int) -> bytes:
    """A unigram `.model` with a mark for begin and end, and bytes for what it has no piece for."""
    pieces: Any = library("sentencepiece")
    model = io.BytesIO()
    lines = (line for text in texts for line in text.splitlines() if line.strip())
    try:
        pieces.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            vocab_size=vocabulary,
            byte_fallback=True,
            character_coverage=0.9995,
            num_threads=1,  # the outcome must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().rpartition("] ")[2].rstrip(".")
        raise TokenizerError(
            f"SentencePiece cannot be trained: {reason}", "Give more text, or lower --vocabulary."
        ) from error
    return model.getvalue()


def written(content: bytes, out: Path) -> str:
    """Leaves it there, whole or not at all; returns its identity. Raises OSError."""
    draft = out.with_name(f"{out.name}.draft")
    draft.write_bytes(content)
    draft.replace(out)
    return hashlib.sha256(content).hexdigest()
