"""What is due once a step is complete. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    last, every = step == job.steps, job.checkpoint.every_steps
    return Due(
        save=last or (every is not None and step % every == 0),
        evaluate=last or step % job.eval.every_steps == 0,
    )


RETRY_SHARE = 0.25  # of the interval: so soon a save that failed is tried again


@dataclass
class SaveTimer:
    """Saves by time: when the next one is due, in seconds of a monotonic clock.

    Only process 0 asks it. What it says goes round the gang with the next step, as the wish to
    leave does, so that no two hosts ever compare their clocks. None is never due.
    """

    every: float | None
    since: float
    _asked: bool = field(default=False, init=False)

    def due(self, now: float, last_failed: bool) -> bool:
        """Whether a save is to be asked for; once, until it was begun."""
        if self.every is None or self._asked:
            return False
        wait = self.every * RETRY_SHARE if last_failed else self.every
        self._asked = now - self.since >= wait
        return self._asked

    def began(self, now: float) -> None:
        """A save begins, whatever asked for it."""
        self.since, self._asked = now, False
