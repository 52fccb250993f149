"""Stored specs of older versions, brought to today's shape one version at a time.

Owns the chain of upcasters. A stored spec is never written anew: each reading goes through here.
Adding a field with a default needs no new version; renaming, removing or giving another meaning
does: raise `SPEC_VERSION` in `worker.protocol.spec` and add the step from the version before.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from worker.protocol import SPEC_VERSION, AnySpec, spec_model

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
UPCASTERS: Mapping[int, Upcaster] = {}  # from this version to the next


class SpecTooNew(Exception):
    """A stored spec was written by a newer Longhaul than this one."""


def job_spec(version: int, text: str) -> AnySpec:
    """Reads a stored spec; raises `SpecTooNew` for a version that this code does not know."""
    if version == SPEC_VERSION:
        return _of_today(text)
    spec = upcast(json.loads(text), version)
    return spec_model(spec).model_validate(spec)


@functools.lru_cache(maxsize=1024)
def _of_today(text: str) -> AnySpec:
    """Remembered: each look reads it anew, and a frozen spec may be shared."""
    spec = json.loads(text)
    return spec_model(spec).model_validate_json(text)


def upcast(
    spec: dict[str, Any],
    version: int,
    newest: int = SPEC_VERSION,
    steps: Mapping[int, Upcaster] = UPCASTERS,
) -> dict[str, Any]:
    """The spec as version `newest` spells it."""
    if version > newest:
        raise SpecTooNew(
            f"the spec has version {version}, this Longhaul reads up to {newest};"
            " install the version that wrote it"
        )
    for step in range(version, newest):
        spec = steps[step](spec)
    return spec
