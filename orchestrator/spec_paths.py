"""Fields of a spec by dotted paths: `batch.sequences=8` put in, and which fields differ.

Owns the one meaning of `--set`, on the command line and in the API. Pure; knows nothing of what a
field is for, and whether the outcome makes sense is said by the spec itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import cast

SHORT_FOR = {"model": "preset", "hosts": "count"}

Fields = dict[str, object]


class BadPath(ValueError):
    """A path that leads nowhere in a spec; the message says where it ends."""


def copy(spec: Mapping[str, object]) -> Fields:
    return cast(Fields, json.loads(json.dumps(spec)))


def with_changes(spec: Mapping[str, object], changes: Mapping[str, object]) -> Fields:
    """The spec with each value put in at its path; raises `BadPath`."""
    changed = copy(spec)
    for path, value in changes.items():
        put(changed, path, value)
    return changed


def put(spec: Fields, path: str, value: object) -> None:
    """Puts one value in. `model=NAME` and `hosts=COUNT` are short forms, as in a spec."""
    names = [name.strip() for name in path.split(".")]
    if not all(names):
        raise BadPath("a path is made of names with dots in between, as in batch.sequences")
    first = names[0]
    short, held = SHORT_FOR.get(first), spec.get(first)
    if short and len(names) == 1 and first == "hosts" and isinstance(held, dict):
        if not isinstance(value, dict):
            names = [first, short]
    elif short and len(names) > 1 and first in spec and not isinstance(held, dict):
        spec[first] = {short: held}
    _group(spec, names)[names[-1]] = value


def _group(spec: Fields, names: list[str]) -> Fields:
    """The group of fields that holds the last name, made where it is missing."""
    group = spec
    for depth, name in enumerate(names[:-1]):
        inside = group.setdefault(name, {})
        if inside is None:
            inside = group[name] = {}
        if not isinstance(inside, dict):
            where = ".".join(names[: depth + 1])
            raise BadPath(f"{where} is {json.dumps(inside)}, not a group of fields")
        group = cast(Fields, inside)
    return group


def differing(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[str, ...]:
    """The dotted paths of every field that differs, in order; lists are compared whole."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    missing = object()
    return tuple(
        path
        for path in sorted(old.keys() | new.keys())
        if old.get(path, missing) != new.get(path, missing)
    )


def _leaves(fields: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(cast(Fields, value), f"{above}{name}.")
        else:
            yield f"{above}{name}", value
