"""A tokenizer by name: `bytes`, or a file that tells by its ending and content what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from worker.protocol.data import Characters
from worker.tokenizers.base import Tokenizer, TokenizerError
from worker.tokenizers.libraries import HuggingFaceFile, SentencePieceFile, TiktokenFile
from worker.tokenizers.plain import Bytes, CharacterTokenizer

HINT = (
    "It is `bytes`, a tokenizer.json (of Hugging Face, or with kind: characters and a charset), a"
    " SentencePiece .model or a .tiktoken file."
)


def open_tokenizer(name: str, begin: str | None = None, end: str | None = None) -> Tokenizer:
    """`begin` and `end` name tokens of a tokenizer.json. Raises TokenizerError."""
    path = Path(name)
    if (begin or end) and path.suffix != ".json":
        raise TokenizerError(
            "only a tokenizer.json can be told its marks", "Leave --begin and --end out."
        )
    if name == "bytes":
        return Bytes()
    try:
        match path.suffix:
            case ".model":
                return SentencePieceFile(path)
            case ".tiktoken":
                return TiktokenFile(path)
            case ".json":
                return _of_json(path, begin, end)
            case _:
                raise TokenizerError(f"there is no tokenizer {name}", HINT)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}", HINT) from error


def _of_json(path: Path, begin: str | None, end: str | None) -> Tokenizer:
    try:
        content: object = json.loads(path.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}", HINT) from error
    fields = cast(dict[str, object], content) if isinstance(content, dict) else {}
    if fields.get("kind") != "characters":
        return HuggingFaceFile(path, begin, end)
    try:
        return CharacterTokenizer(Characters.model_validate(fields))
    except ValidationError as error:
        first = error.errors()[0]
        raise TokenizerError(f"{path}: {first['msg']}", HINT) from error


def content_of(tokenizer: Tokenizer, name: str) -> bytes | None:
    """The bytes to keep beside shards: their hash is the tokenizer's identity."""
    if isinstance(tokenizer, CharacterTokenizer):
        return tokenizer.as_file()
    return None if tokenizer.record.file is None else Path(name).read_bytes()
