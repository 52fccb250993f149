"""Arithmetic of saves: when they come, how many, how large, how many stay.

Pure; must not import the store, the API or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.reconcile.cadence import FIRST_SECONDS
from worker.protocol import AnySpec, CheckpointSpec, CommandSpec, KeepSpec

ON_THEIR_WAY = 2  # the one being written, and the one that waits until a newer one is proven


@dataclass(frozen=True)
class SavePlan:
    """The saves of a whole run without any replay, and how many stay at once; sizes in bytes.

    What a program of its own saves is not known before it did.
    """

    count: int
    bytes_each: int | None
    stay: int

    @property
    def bytes_total(self) -> int | None:
        return None if self.bytes_each is None else self.stay * self.bytes_each


def planned_saves(job: AnySpec, hours: float | None = None) -> SavePlan:
    """By steps, or by time over the `hours` that are forecast, whichever is more often.

    And one at the end if none falls there.
    """
    by_steps, rest = _by_steps(job)
    count = max(by_steps + (1 if rest else 0), _by_time(job.checkpoint, hours))
    stay = count if job.checkpoint.keep is None else min(count, _most(job, job.checkpoint.keep))
    each = None if isinstance(job, CommandSpec) else job.checkpoint_bytes
    return SavePlan(count, each, stay)


def _by_steps(job: AnySpec) -> tuple[int, int]:
    every = job.checkpoint.every_steps
    return (0, 1) if every is None else divmod(job.steps, every)


def _by_time(spec: CheckpointSpec, hours: float | None) -> int:
    if spec.every_seconds is None or hours is None:
        return 0
    every = FIRST_SECONDS if spec.every_seconds == "auto" else spec.every_seconds
    return int(hours * 3600 / every) + 1


def _most(job: AnySpec, keep: KeepSpec) -> int:
    milestones = 0 if keep.every_steps is None else job.steps // keep.every_steps
    return keep.newest + milestones + (keep.best.n if keep.best else 0) + ON_THEIR_WAY


def in_words(spec: CheckpointSpec) -> str:
    """How often is saved: "every 100 steps", "every 600 s", or both."""
    parts: list[str] = []
    if spec.every_steps is not None:
        unit = "step" if spec.every_steps == 1 else "steps"
        parts.append(f"every {spec.every_steps:,} {unit}")
    match spec.every_seconds:
        case None:
            pass
        case "auto":
            parts.append("at the interval that loses least")
        case seconds:
            parts.append(f"every {seconds:g} s")
    return " and ".join(parts)
