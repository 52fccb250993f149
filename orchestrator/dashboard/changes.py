"""What differs between two specs, field by field, for people: a revision's changes, two runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from orchestrator.api.schemas import RevisionView
from orchestrator.spec_paths import differing
from worker.protocol import AnySpec

MISSING = "not set"


@dataclass(frozen=True)
class Change:
    """One field by its dotted path; values as a person would write them."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Revised:
    """A revision and what it changed of the one before; nothing for the first."""

    revision: RevisionView
    changes: list[Change]


def revised(revisions: Sequence[RevisionView]) -> list[Revised]:
    """Newest first; `revisions` are in order."""
    found = [Revised(one, []) for one in revisions[:1]]
    found += [
        Revised(after, differences(before.spec, after.spec))
        for before, after in pairwise(revisions)
    ]
    return found[::-1]


def differences(before: AnySpec, after: AnySpec) -> list[Change]:
    """Every field that differs, by its path, with all defaults filled in."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return [
        Change(path, _told(old, path), _told(new, path))
        for path in differing(old, new)
        if _told(old, path) != _told(new, path)
    ]


def _told(spec: Mapping[str, object], path: str) -> str:
    here: object = spec
    for name in path.split("."):
        fields = _fields(here)
        if name not in fields:
            return MISSING
        here = fields[name]
    if here is None:
        return MISSING
    return here if isinstance(here, str) else json.dumps(here)


def _fields(value: object) -> dict[str, object]:
    return cast(dict[str, object], value) if isinstance(value, dict) else {}
