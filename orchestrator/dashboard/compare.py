"""Two runs beside each other: their curves on one axis, their numbers, and what their specs say."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.api.schemas import RunDetail, RunSummary
from orchestrator.dashboard.changes import Change, differences
from orchestrator.dashboard.reader import Reader


@dataclass(frozen=True)
class Compare:
    """`runs` to choose from; nothing is drawn before both are chosen."""

    runs: tuple[RunSummary, ...]
    first: RunDetail | None
    second: RunDetail | None
    changes: list[Change]


def compare(reader: Reader, first: RunDetail | None, second: RunDetail | None) -> Compare:
    changed = differences(first.spec, second.spec) if first and second else []
    told = [change for change in changed if change.path != "name"]
    return Compare(reader.runs(), first, second, told)
