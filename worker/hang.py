"""How long a trainer may stay where it is, and what it was doing when that was too long.

Owns the limits of each phase, step and save, judged by what the trainer itself tells. Pure: time
is given. Must not import JAX.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from worker.protocol import (
    Evaluated,
    HangSpec,
    KnownEvent,
    Phase,
    PhaseEntered,
    Saving,
    StepBeat,
    StepCompleted,
    Unknown,
)

RECENT_STEPS = 200
FEW_STEPS = 20  # fewer tell nothing about how long a step takes
PERCENTILE = 0.99
FAST = frozenset({Phase.SPAWN, Phase.IMPORT, Phase.INIT})


@dataclass(frozen=True)
class Limit:
    """How long `what` may last, in seconds, and where that figure comes from."""

    what: str
    seconds: float
    because: str


class Vigil:
    """Follows one trainer. Times are seconds of a monotonic clock.

    One that is `told_seldom` of its steps may be silent for long; how long is usual shows only
    after some of them.
    """

    def __init__(self, spec: HangSpec, now: float, told_seldom: bool = False) -> None:
        self._spec = spec
        self._told_seldom = told_seldom
        self._phase = Phase.SPAWN
        self._since = now
        self._saving_since: float | None = None
        self._stepped = False
        self._plain = False  # nothing but steps since the last step
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def saw(self, event: KnownEvent | Unknown, now: float) -> None:
        match event:
            case PhaseEntered():
                self._phase, self._since, self._plain = event.phase, now, False
            case StepCompleted() | StepBeat():
                self._step(event.seconds, now)
            case Saving():
                self._saving_since = now if event.active else None
                self._since, self._plain = now, False
            case Evaluated():
                self._since = now
            case _:
                pass

    def slept(self, seconds: float) -> None:
        """The watcher itself stood still for so long: that is not the trainer's fault."""
        self._since += seconds
        if self._saving_since is not None:
            self._saving_since += seconds

    def still_for(self, now: float) -> float:
        """Seconds since the trainer was last seen to get on."""
        return now - self._since

    def overdue(self, now: float) -> str | None:
        """Why the trainer counts as hung, in words; None while it does not."""
        for since, limit in self._limits():
            if now - since > limit.seconds:
                lasted = f"{limit.what} for {now - since:.0f} s"
                return f"{lasted}; its limit is {limit.seconds:.0f} s ({limit.because})"
        return None

    def _limits(self) -> list[tuple[float, Limit]]:
        spec, found = self._spec, list[tuple[float, Limit]]()
        if self._saving_since is not None:
            because = "policy.hang.save_seconds"
            found.append((self._saving_since, Limit("a save went on", spec.save_seconds, because)))
        here = self._limit_here()
        if here is not None:
            found.append((self._since, here))
        return found

    def _limit_here(self) -> Limit | None:
        spec, phase = self._spec, self._phase
        if phase in FAST:
            return Limit(f"it stayed in {phase}", spec.start_seconds, "policy.hang.start_seconds")
        match phase:
            case Phase.RESTORE:
                seconds, field = spec.restore_seconds, "restore_seconds"
            case Phase.COMPILE:
                seconds, field = spec.compile_seconds, "compile_seconds"
            case Phase.EVAL:
                seconds, field = spec.eval_seconds, "eval_seconds"
            case Phase.TRAIN if not self._stepped:
                # The first step may compile.
                seconds, field = spec.compile_seconds, "compile_seconds"
                return Limit("it completed no first step", seconds, f"policy.hang.{field}")
            case Phase.TRAIN:
                return self._limit_of_a_step()
            case _:
                return None  # it waits until its last checkpoint counts, however long that takes
        return Limit(f"it stayed in {phase}", seconds, f"policy.hang.{field}")

    def _limit_of_a_step(self) -> Limit:
        spec = self._spec
        seconds, because = spec.step_seconds, "policy.hang.step_seconds"
        if self._told_seldom and len(self._recent) < FEW_STEPS:
            seconds = max(seconds, spec.compile_seconds)
            because = "policy.hang.compile_seconds, while few steps are known"
        if len(self._recent) >= FEW_STEPS:
            usual = _percentile(self._recent)
            if usual * spec.step_factor > seconds:
                seconds = usual * spec.step_factor
                because = f"{spec.step_factor:g} x {usual:.2f} s, the slowest of 100 recent steps"
        if self._saving_since is not None and spec.save_seconds > seconds:
            seconds, because = (
                spec.save_seconds,
                "policy.hang.save_seconds, for a save is under way",
            )
        return Limit("it completed no step", seconds, because)

    def _step(self, seconds: float, now: float) -> None:
        # The first step compiles, and one beside a save or an eval waited for that.
        if self._stepped and self._plain and self._saving_since is None:
            self._recent.append(seconds)
        self._since, self._stepped, self._plain = now, True, True


def _percentile(values: deque[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(PERCENTILE * len(ordered)) - 1)]
