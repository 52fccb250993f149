"""What is due once a step is complete. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from worker.protocol import JobSpec


@dataclass(frozen=True)
class Due:
    save: bool
    evaluate: bool

    @property
    def anything(self) -> bool:
        return self.save or self.evaluate


def due(job: JobSpec, step: int) -> Due:
    """What follows the completed `step`; the last one is always evaluated and saved."""
    last = step == job.steps
    return Due(
        save=last or step % job.checkpoint.every_steps == 0,
        evaluate=last or step % job.eval.every_steps == 0,
    )
