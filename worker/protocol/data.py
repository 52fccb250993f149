"""The data section of a spec: where tokens come from, in which shares, and how text becomes ids."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, lcm
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from worker.protocol.base import Spec
from worker.protocol.shards import Dtype, Sha256

BYTE_VOCABULARY = 257  # 256 byte values and one end-of-document id
LONGEST_TURN = 100_000  # samples after which the schedule of a mixture begins anew


def _absolute(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise ValueError("give an absolute path without '..', as the training host sees it")
    return path


def _one_name(pattern: str) -> str:
    if "/" in pattern or "\0" in pattern:
        raise ValueError("give a pattern of names within the folder, without '/'")
    return pattern


HostPath = Annotated[str, AfterValidator(_absolute)]


class PythonSource(Spec):
    """The running interpreter's own standard library as text, byte by byte (tests left out)."""

    kind: Literal["python-source"] = "python-source"


class TextFiles(Spec):
    """UTF-8 or any other text, read as bytes: one file, or every matching file below a folder."""

    kind: Literal["text"] = "text"
    path: HostPath
    suffixes: tuple[str, ...] = (".txt", ".md", ".py")


class Shards(Spec):
    """A folder of token ids: what `longhaul data prepare` made, or bare files without a manifest.

    A manifest tells all there is to know, and `manifest_sha256` pins it. `files` and `dtype` are
    for bare files: ids of that type and nothing else (nanoGPT), or behind a header (llm.c). Those
    with the word `val` in their names are held out.
    """

    kind: Literal["shards"] = "shards"
    path: HostPath
    manifest_sha256: Sha256 | None = None
    files: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_name)] = "*.bin"
    dtype: Dtype = "uint16"


OneSource = Annotated[PythonSource | TextFiles | Shards, Field(discriminator="kind")]


class MixturePart(Spec):
    weight: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    source: OneSource


class Mixture(Spec):
    """Several sources, each with its share of the samples: 70 and 30, or 0.7 and 0.3.

    The shares are exact at every step, within one sample. A part whose weight is 0 is not read.
    """

    kind: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[MixturePart, ...], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _has_shares(self) -> Self:
        if not any(part.weight for part in self.parts):
            raise ValueError(
                "the weights of the mixture sum to nothing; give a part a weight above 0"
            )
        if sum(self.shares) > LONGEST_TURN:
            raise ValueError(
                f"these weights do not come out even within {LONGEST_TURN:,} samples;"
                " write them with fewer digits"
            )
        return self

    @property
    def shares(self) -> tuple[int, ...]:
        """Samples of each part in one turn: the smallest whole numbers in these proportions."""
        exact = [Fraction(str(part.weight)) for part in self.parts]  # 0.7 is seven tenths
        scale = lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * scale) for weight in exact]
        common = gcd(*whole) or 1
        return tuple(share // common for share in whole)


DataSource = Annotated[PythonSource | TextFiles | Shards | Mixture, Field(discriminator="kind")]


class Characters(Spec):
    """Each character of `charset` is an id, its place there; documents end with a line break.

    `lowercase` comes first. A character that is none of these is refused by its place, or dropped.
    """

    kind: Literal["characters"] = "characters"
    charset: Annotated[str, Field(min_length=1, max_length=65_536)]
    lowercase: bool = False
    others: Literal["refuse", "drop"] = "refuse"

    @model_validator(mode="after")
    def _has_each_once(self) -> Self:
        seen: set[str] = set()
        for character in self.charset:
            if character in seen:
                raise ValueError(f"the charset has {character!r} twice")
            seen.add(character)
        upper = next((c for c in self.charset if c.lower() != c), None)
        if self.lowercase and upper is not None:
            raise ValueError(f"the charset has {upper!r}, which lowercase never leaves")
        return self


class DataSpec(Spec):
    """What is trained on, and which share of it is held out for evaluation.

    Of a folder of text that is a share of the files, of shards their last samples, where they hold
    nothing out themselves. `tokenizer` is for text alone; not set, text is read as bytes.
    """

    source: DataSource = PythonSource()
    tokenizer: Annotated[Characters | None, Field(exclude_if=lambda given: given is None)] = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.02

    @model_validator(mode="after")
    def _tokenizes_text_alone(self) -> Self:
        if self.tokenizer is not None and any(isinstance(one, Shards) for one in self.sources):
            raise ValueError("data.tokenizer is for text; shards have been tokenized already")
        return self

    @property
    def sources(self) -> tuple[PythonSource | TextFiles | Shards, ...]:
        """Those that are read, in order."""
        if isinstance(self.source, Mixture):
            return tuple(part.source for part in self.source.parts if part.weight)
        return (self.source,)

    @property
    def least_vocabulary(self) -> int:
        """Ids that the spec alone is known to need; those of shards only their folder tells."""
        if all(isinstance(one, Shards) for one in self.sources):
            return 1
        return BYTE_VOCABULARY if self.tokenizer is None else len(self.tokenizer.charset)

    @property
    def needs_protocol(self) -> int:
        """The first protocol whose agents can read it."""
        plain = isinstance(self.source, PythonSource | TextFiles) and self.tokenizer is None
        return 2 if plain else 3
