"""The data plan of a branch: its origin's, with more skips recorded and none taken back.

Owns how skips are added. They are kept as ranges of batches in plan order that never overlap, since
the plan steps over each of them once. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from worker.protocol import DataPlan, Skip


def plan_from(origin: DataPlan, current: DataPlan, step: int, batches: int, why: str) -> DataPlan:
    """The plan of a branch that begins after `step` updates of a branch with the plan `origin`.

    What was trained before `step` keeps its batches. Skips of the plan `current`, which the run
    followed until now, stay recorded where they lie ahead: what was found bad is not trained after
    all. Then the next `batches` batches that are left are skipped, because of `why`.
    """
    first = origin.batch_index(step)
    kept = [skip for skip in current.skips if skip.last >= first]
    plan = _with(origin, ((_ahead(skip, first), skip.reason) for skip in kept))
    ahead = [plan.batch_index(step + number) for number in range(batches)]
    return _with(plan, [(ahead, why)])


def _ahead(skip: Skip, first: int) -> range:
    return range(max(skip.first, first), skip.last + 1)


def _with(plan: DataPlan, added: Iterable[tuple[Iterable[int], str]]) -> DataPlan:
    """Adds the batches that are not skipped yet, as ranges."""
    skips = list(plan.skips)
    for batches, why in added:
        fresh = [index for index in batches if not _is_skipped(skips, index)]
        skips.extend(Skip(first=low, last=high, reason=why) for low, high in _ranges(fresh))
    return DataPlan(seed=plan.seed, skips=tuple(skips))


def _is_skipped(skips: list[Skip], index: int) -> bool:
    return any(skip.first <= index <= skip.last for skip in skips)


def _ranges(indices: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and index == found[-1][1] + 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found
