"""Arithmetic of saves: when they come, how many, how large.

Pure; must not import the store, the API or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.protocol import JobSpec


@dataclass(frozen=True)
class SavePlan:
    """The saves of a whole run without any replay; sizes in bytes."""

    count: int
    bytes_each: int

    @property
    def bytes_total(self) -> int:
        return self.count * self.bytes_each


def planned_saves(job: JobSpec) -> SavePlan:
    """A save every `checkpoint.every_steps` steps, and one at the end if none falls there."""
    whole, rest = divmod(job.steps, job.checkpoint.every_steps)
    return SavePlan(whole + (1 if rest else 0), job.checkpoint_bytes)
