"""How often an attempt saves, where the spec leaves that to time.

Pure. Chosen when the attempt is made and fixed for its life: every process of the gang is told the
same, and a person can be told why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.reconcile.budgets import COUNTED
from orchestrator.records import Attempt, Checkpoint
from orchestrator.state import RETRY_CLASS
from worker.protocol import CheckpointSpec

LEAST_SECONDS, MOST_SECONDS = 15.0, 1800.0
PRIOR_FAILURES, PRIOR_HOURS = 1.0, 24.0
PRIOR_SAVES, PRIOR_STALL_SECONDS = 1.0, 1.0
FIRST_SECONDS = round(math.sqrt(2 * PRIOR_STALL_SECONDS * PRIOR_HOURS / PRIOR_FAILURES * 3600))


@dataclass(frozen=True)
class Cadence:
    """A save every `seconds`, and why; None where only steps decide."""

    seconds: float | None = None
    why: str | None = None


def chosen(
    spec: CheckpointSpec,
    attempts: Sequence[Attempt],
    saved: Sequence[Checkpoint],
    now: datetime,
) -> Cadence:
    """`attempts` are all of the run, `saved` its newest checkpoints, of which saves are measured.

    `auto` is Young's interval, which loses least in the first order: sqrt(2 x save stall x mean
    time between failures). The failure rate has a Gamma(1, 24 h) prior: as if the gang had failed
    once in 24 hours of training before. Its posterior mean, (1 + failures) / (24 h + hours
    trained), is the inverse of the mean time between failures. Failures are ends that a budget
    counts; hours run from an attempt's first step to its end. The stall is the mean of the measured
    ones and one of 1 s. The interval is held within 15 s and 30 min, and is never shorter than the
    mean save takes to be written, since the next one would wait for it.
    """
    match spec.every_seconds:
        case None:
            return Cadence()
        case "auto":
            return _least_loss(attempts, saved, now)
        case seconds:
            return Cadence(seconds, "checkpoint.every_seconds")


def _least_loss(attempts: Sequence[Attempt], saved: Sequence[Checkpoint], now: datetime) -> Cadence:
    failures = sum(
        one.verdict is not None and RETRY_CLASS[one.verdict] in COUNTED for one in attempts
    )
    hours = sum(_hours(one, now) for one in attempts)
    between = (PRIOR_HOURS + hours) / (PRIOR_FAILURES + failures)
    measured = sum(one.stall_seconds for one in saved)
    stall = (PRIOR_STALL_SECONDS * PRIOR_SAVES + measured) / (PRIOR_SAVES + len(saved))
    best = math.sqrt(2 * stall * between * 3600)
    written = sum(one.write_seconds for one in saved) / len(saved) if saved else 0.0
    seconds = float(round(min(max(best, LEAST_SECONDS, written), MOST_SECONDS)))
    why = (
        f"sqrt(2 x {stall:.2g} s of stall x {between:.3g} h between failures) = {best:.0f} s;"
        f" {failures} {'failure' if failures == 1 else 'failures'} in {hours:.3g} h and"
        f" {len(saved)} {'save' if len(saved) == 1 else 'saves'} seen, with a prior of 1 in 24 h"
        f" and 1 s"
    )
    return Cadence(seconds, why if seconds == round(best) else f"{why}; held at {seconds:.0f} s")


def _hours(attempt: Attempt, now: datetime) -> float:
    if attempt.first_step_at is None:
        return 0.0
    return max(0.0, ((attempt.ended_at or now) - attempt.first_step_at).total_seconds() / 3600)
