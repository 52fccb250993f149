"""Whom a gang waits for, and whether a run trains as fast as it did.

Pure. All processes of a gang take equally long for a step, since all wait for the last one. So a
slow host is one that waits for nobody, its own work filling the step, while that of the others is
much less. A slow accelerator can not be told so: from every host it looks the same, and only the
run as a whole is seen to be slower than it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from statistics import median

from orchestrator.reconcile.plan import NoteSlow
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Pace, Trainer
from orchestrator.state import AttemptState

FRESH = timedelta(minutes=5)  # a pace is told each minute, and may be held back for one
BUSY_SHARE, STILL_BUSY_SHARE = 0.9, 0.75  # of a step; the second for a host that was named
CALM = 0.5  # of the way from the factor back to 1: only there what was named is over


def notes(snap: Snapshot, attempt: Attempt) -> Iterator[NoteSlow]:
    """What became slow, or is slow no more."""
    if attempt.state is not AttemptState.RUNNING:
        return
    gang = snap.gang(attempt)
    told = ((trainer.rank, _fresh(snap, trainer)) for trainer in gang)
    paces = {rank: pace for rank, pace in told if pace is not None}
    if len(paces) == len(gang) > 1:
        for trainer in gang:
            words = _host(snap, trainer, paces[trainer.rank], _others(paces, trainer.rank))
            if (words is None) != (trainer.slow_why is None):
                yield NoteSlow(attempt.number, trainer.rank, words)
    if 0 in paces:
        words = _run(snap, attempt, paces[0])
        if (words is None) != (attempt.slow_why is None):
            yield NoteSlow(attempt.number, None, words)


def _fresh(snap: Snapshot, trainer: Trainer) -> Pace | None:
    pace = trainer.pace
    known = pace is not None and snap.now - pace.at < FRESH and pace.seconds > 0
    return pace if known else None


def _others(paces: dict[int, Pace], rank: int) -> float:
    return median(pace.own for other, pace in paces.items() if other != rank)


def _host(snap: Snapshot, trainer: Trainer, pace: Pace, others: float) -> str | None:
    named = trainer.slow_why is not None
    busy = STILL_BUSY_SHARE if named else BUSY_SHARE
    factor = _limit(snap.job.policy.slow_host_factor, named)
    if factor is None or pace.own < busy * pace.seconds or pace.own < factor * others:
        return None
    return (
        f"host {trainer.rank} keeps the others waiting: of a step of {pace.seconds:.3g} s its own"
        f" work takes {pace.own:.3g} s{_data(pace)}, that of the others {others:.3g} s"
    )


def _run(snap: Snapshot, attempt: Attempt, pace: Pace) -> str | None:
    """By the best of all attempts that trained the same on as many hosts."""
    alike = (
        one.best_pace_seconds
        for one in snap.attempts
        if (one.revision, one.processes) == (attempt.revision, attempt.processes)
    )
    best = min((seconds for seconds in alike if seconds), default=None)
    factor = _limit(snap.job.policy.slow_run_factor, attempt.slow_why is not None)
    if best is None or factor is None or pace.seconds < factor * best:
        return None
    return (
        f"a step takes {pace.seconds:.3g} s{_data(pace)} since about step {pace.step};"
        f" the best was {best:.3g} s"
    )


def _limit(factor: float | None, named: bool) -> float | None:
    return 1 + (factor - 1) * CALM if factor is not None and named else factor


def _data(pace: Pace) -> str:
    return f" ({pace.data_wait:.3g} s of it waiting for data)" if pace.data_wait > 0.005 else ""
