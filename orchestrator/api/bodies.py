"""Reads a spec from the body of a request: JSON or YAML, of limited size, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import yaml
from fastapi import Request
from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar

from orchestrator.api.errors import Refused
from orchestrator.api.fields import body_errors
from orchestrator.strict_yaml import LARGEST_SPEC, StrictLoader
from worker.protocol import AnySpec, spec_model

JSON_TYPE = "application/json"
YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml"})

_READABLE = "Mend it there; 'longhaul preflight FILE' shows the line."

M = TypeVar("M", bound=BaseModel)


async def read_model(request: Request, model: type[M], *, optional: bool = False) -> M:
    """The body as `model`; refuses with 400, 413, 415 or 422. An optional one may be empty."""
    raw = await _read(request)
    if optional and not raw.strip():
        return model()
    return parse(raw, _type_of(request), model)


async def read_spec(request: Request) -> AnySpec:
    """The body as the kind of spec that it is meant to be; refuses as `read_model`."""
    body = decode(await _read(request), _type_of(request))
    return fitted(body, spec_model(body))


def parse(raw: bytes, content_type: str, model: type[M]) -> M:
    """The same for bytes at hand."""
    return fitted(decode(raw, content_type), model)


def decode(raw: bytes, content_type: str) -> Any:
    """Plain data; refuses with 400 or 415."""
    return _decode(raw, content_type.partition(";")[0].strip().lower())


def _type_of(request: Request) -> str:
    return request.headers.get("Content-Type", JSON_TYPE)


def fitted(body: Any, model: type[M]) -> M:
    """Plain data as `model`; refuses with 422, naming each field at fault."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        errors = body_errors(model, body, error.errors(include_url=False))
        fields = "field does" if len(errors) == 1 else "fields do"
        raise Refused(
            422, "invalid-spec", f"{len(errors)} {fields} not fit.", errors=errors
        ) from None


async def _read(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_SPEC:
            raise Refused(
                413,
                "body-too-large",
                f"The body is larger than {LARGEST_SPEC // 1024} KiB.",
                "A spec names files by their paths; it does not hold them.",
            )
        parts.append(part)
    return b"".join(parts)


def _decode(raw: bytes, kind: str) -> Any:
    if kind == JSON_TYPE:
        return _decode_json(raw)
    if kind in YAML_TYPES:
        return _decode_yaml(raw)
    raise Refused(
        415,
        "unsupported-type",
        "The body is neither JSON nor YAML.",
        "Send Content-Type application/json or application/yaml.",
    )


def _decode_json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (UnicodeDecodeError, RecursionError):
        raise Refused(400, "unreadable-body", "The body is not JSON text.", _READABLE) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(
            400, "unreadable-body", f"The body is not JSON: {error.msg} at {where}.", _READABLE
        ) from None
    except ValueError:  # thousands of digits
        raise Refused(
            400, "unreadable-body", "The body holds a number that is too long.", _READABLE
        ) from None


def _refuse_aliases(raw: bytes) -> None:
    """With aliases, a small text can grow without bound."""
    tokens = cast(Iterator[yaml.Token], yaml.scan(raw, yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
    for token in tokens:
        if isinstance(token, yaml.AliasToken):
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed", problem_mark=token.start_mark
            )


def _decode_yaml(raw: bytes) -> Any:
    try:
        _refuse_aliases(raw)
        return yaml.load(raw, Loader=StrictLoader)  # noqa: S506 - the safe loader, made stricter
    except RecursionError:
        raise Refused(400, "unreadable-body", "The YAML is nested too deeply.", _READABLE) from None
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        said = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
        raise Refused(
            400,
            "unreadable-body",
            f"The body is not YAML: {said or 'it can not be read'}{where}.",
            _READABLE,
        ) from None
