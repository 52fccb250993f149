"""Validation errors of a request: which field of the body, what is wrong, what to do.

Owns the places that pydantic's error lists speak of; their words are `plain_words`'s. Pure; must
not import the store or FastAPI.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from model.config import LlamaConfig, NanochatConfig
from orchestrator.api.schemas import FieldError
from orchestrator.plain_words import in_words

Location = tuple[int | str, ...]

_NUMBER_WORD = re.compile(r"-?\d[\d.e+-]*\s+([a-z_]+)")
_WORD = re.compile(r"[a-z_]+(?:\.[a-z_]+)*")


def body_errors(
    model: type[BaseModel], body: object, details: Sequence[Any]
) -> tuple[FieldError, ...]:
    """One `FieldError` for each of pydantic's `details` about `body` read as `model`."""
    return tuple(_one(model, body, detail) for detail in details)


def query_errors(details: Sequence[Any]) -> tuple[FieldError, ...]:
    """The same for parameters of the address, which have no place in the body."""
    found: list[FieldError] = []
    for detail in details:
        location: Location = detail["loc"]
        where, name = str(location[0]), ".".join(str(part) for part in location[1:])
        words, hint = in_words(detail)
        if where == "body":
            found.append(FieldError(pointer=pointer(location[1:]), detail=words, hint=hint))
        else:
            words = f"{where} parameter '{name}': {words}"
            found.append(FieldError(pointer="", detail=words, hint=hint))
    return tuple(found)


def pointer(path: Location) -> str:
    """RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _one(model: type[BaseModel], body: object, detail: Any) -> FieldError:
    path, owner = _resolve(model, body, detail["loc"])
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path, owner)
    words, hint = in_words(detail)
    if detail["type"] == "value_error":
        path += _field_meant(words[:1].lower() + words[1:], body, path, owner)
    return FieldError(pointer=pointer(path), detail=words, hint=hint)


def _unknown_key(path: Location, owner: type[BaseModel] | None) -> FieldError:
    key = str(path[-1])
    known = _known_keys(owner) if owner else ()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        hint = f"Did you mean '{near[0]}'?"
    else:
        hint = f"The fields here are: {', '.join(known)}." if known else "Remove it."
    return FieldError(pointer=pointer(path), detail=f"There is no field '{key}' here.", hint=hint)


def _known_keys(owner: type[BaseModel]) -> tuple[str, ...]:
    extra = ("preset",) if owner in (LlamaConfig, NanochatConfig) else ()
    return (*owner.model_fields, *extra)


def _resolve(
    model: type[BaseModel], body: object, location: Location
) -> tuple[Location, type[BaseModel] | None]:
    """The place in the body as sent, and the model that owns its last key.

    Pydantic puts the tag of a union into its locations, which the body does not have.
    """
    path: list[int | str] = []
    here: object = body
    types: tuple[type[BaseModel], ...] = (model,)
    owner: type[BaseModel] | None = model
    for part in location:
        tagged = [found for found in types if _tag(found) == part]
        inside: dict[Any, Any] | None = here if isinstance(here, dict) else None  # pyright: ignore[reportUnknownVariableType]
        if tagged and (inside is None or part not in inside):
            types = (tagged[0],)
            continue
        owner = types[0] if types else None
        path.append(part)
        types = tuple(_below(types, part))
        here = inside.get(part) if inside is not None else None
    if not location or types:
        owner = types[0] if types else owner
    return tuple(path), owner


def _below(types: Sequence[type[BaseModel]], part: int | str) -> Iterator[type[BaseModel]]:
    for found in types:
        if isinstance(part, str) and part in found.model_fields:
            yield from _models(found.model_fields[part].annotation)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return None if field is None else field.default


def _field_meant(
    words: str, body: object, path: Location, owner: type[BaseModel] | None
) -> Location:
    """Which field below `path` a check over several fields speaks of, from its own words."""
    if owner is None or _is_text(body, path):
        return ()
    for word in reversed(_NUMBER_WORD.findall(words)):
        if word in owner.model_fields:
            return (word,)
    for word in _WORD.findall(words):
        parts = word.split(".")
        if parts[0] in owner.model_fields and (len(parts) > 1 or _is_dotless(words, word)):
            return tuple(parts)
    return ("preset",) if "preset" in words and "preset" in _known_keys(owner) else ()


def _is_dotless(words: str, word: str) -> bool:
    return words.startswith(word)


def _is_text(body: object, path: Location) -> bool:
    here = body
    for part in path:
        here = here.get(part) if isinstance(here, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    return isinstance(here, str)
