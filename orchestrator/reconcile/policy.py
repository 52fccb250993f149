"""Verdicts from evidence, budgets from attempt rows, and the wait before the next attempt.

Pure functions of records. Imports no store, provider, clock or randomness; the jitter of a wait is
derived from the run and the attempt, so that the same snapshot always gives the same answer.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.records import Attempt, Evidence, Trainer
from orchestrator.state import RETRY_CLASS, RetryClass, Verdict
from worker.protocol import ExitCode, PolicySpec

CAUSE_WAIT = timedelta(seconds=5)
OUT_OF_MEMORY_BUDGET = 1

EXIT_VERDICTS: Mapping[int, Verdict] = {
    ExitCode.INVALID: Verdict.INVALID,
    ExitCode.CHECKPOINT_REJECTED: Verdict.STORAGE_FAILED,
    ExitCode.STORAGE_FAILED: Verdict.STORAGE_FAILED,
    ExitCode.DIVERGED: Verdict.DIVERGED,
    ExitCode.DRAINED: Verdict.PREEMPTED,
}
MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "MemoryError", "out of memory")


@dataclass(frozen=True)
class Finding:
    """A verdict with its one-line summary and what it rests on, oldest first."""

    verdict: Verdict
    summary: str
    evidence: tuple[Evidence, ...]


def is_consequence(trainer: Trainer) -> bool:
    """Whether this exit can be the mere result of another trainer's end.

    A collective whose peer is gone ends as PEER_LOST, or as SIGABRT from inside the runtime.
    """
    return (
        trainer.killed_by_agent
        or trainer.exit_code == ExitCode.PEER_LOST
        or trainer.signal == signal.SIGABRT
    )


def cause(trainers: Iterable[Trainer]) -> Trainer | None:
    """The trainer whose end began it: the first that failed on its own account."""
    failed = [t for t in trainers if t.exited and t.exit_code != ExitCode.DONE]
    own = [t for t in failed if not is_consequence(t)]
    return min(own, key=_exit_order, default=None)


def classify(trainers: Sequence[Trainer], lost_to: str | None = None) -> Finding:
    """Why a gang that was not asked to stop has ended. All of `trainers` are dead.

    `lost_to` says what is missing where every trainer claims success.
    """
    evidence = tuple(_told_by(t) for t in sorted(trainers, key=_exit_order))
    if not any(t.exit_code != ExitCode.DONE for t in trainers):
        return Finding(Verdict.UNKNOWN, f"every trainer left with 0, but {lost_to}", evidence)
    first = cause(trainers)
    if first is None:
        summary = "a collective failed on every host and no host told of a cause"
        return Finding(Verdict.CRASHED, summary, evidence)
    return Finding(_verdict_of(first), f"{_who(first)} {how_it_ended(first)}", evidence)


def _verdict_of(trainer: Trainer) -> Verdict:
    words = " ".join((trainer.failure or "", *trainer.last_lines))
    if any(word in words for word in MEMORY_WORDS):
        return Verdict.OUT_OF_MEMORY
    if trainer.exit_code is None:
        return Verdict.CRASHED
    return EXIT_VERDICTS.get(trainer.exit_code, Verdict.CRASHED)


def how_it_ended(trainer: Trainer) -> str:
    """One trainer's end in words, without its name."""
    at = f" after step {trainer.last_step}" if trainer.last_step else " before its first step"
    if trainer.killed_by_agent:
        return f"was ended by its agent{at}: {trainer.why_killed or 'no reason given'}"
    if trainer.signal is not None:
        return f"was killed by {_signal_name(trainer.signal)}{at}"
    if trainer.exit_code is None:
        return f"is gone{at}: {trainer.why_killed or 'nobody saw its exit'}"
    words = f"left with exit code {trainer.exit_code}{at}"
    return f"{words}: {trainer.failure}" if trainer.failure else words


def _told_by(trainer: Trainer) -> Evidence:
    text = how_it_ended(trainer)
    if trainer.last_lines and trainer.exit_code not in (ExitCode.DONE, None):
        text += "; its last line was: " + trainer.last_lines[-1]
    assert trainer.exited_at is not None
    return Evidence(trainer.exited_at, f"agent of host {trainer.rank}", f"the trainer {text}")


def _who(trainer: Trainer) -> str:
    return f"the trainer on host {trainer.rank}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _exit_order(trainer: Trainer) -> tuple[datetime, int]:
    assert trainer.exited_at is not None
    return trainer.exited_at, trainer.rank


# ---- budgets and backoff -----------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Ends in a row of one class without a new highest accepted step, and what is tolerated."""

    ends: int
    allowed: int

    @property
    def exhausted(self) -> bool:
        return self.ends > self.allowed


def spent(attempts: Sequence[Attempt], verdict: Verdict, policy: PolicySpec) -> Spent:
    """The budget of `verdict`'s class after the last of `attempts` ended with it.

    Counted from the rows of the current wish alone: a person's resume starts afresh, and so does
    progress, which is a new highest accepted step of the run.
    """
    kind = RETRY_CLASS[verdict]
    generation = attempts[-1].desired_generation
    best, ends, memory_ends = 0, 0, 0
    for attempt in attempts:
        if (attempt.accepted_step or 0) > best:
            best, ends, memory_ends = attempt.accepted_step or 0, 0, 0
        if attempt.desired_generation == generation and attempt.verdict is not None:
            ends += RETRY_CLASS[attempt.verdict] is kind
            memory_ends += attempt.verdict is Verdict.OUT_OF_MEMORY
    whole = Spent(ends, _allowed(kind, policy))
    if verdict is Verdict.OUT_OF_MEMORY and not whole.exhausted:
        return Spent(memory_ends, OUT_OF_MEMORY_BUDGET)
    return whole


def _allowed(kind: RetryClass, policy: PolicySpec) -> int:
    match kind:
        case RetryClass.CRASH_BUDGET:
            return policy.max_crashes
        case RetryClass.HOST_BUDGET:
            return policy.max_host_losses
        case RetryClass.FINISH | RetryClass.ASK | RetryClass.FAIL | RetryClass.OBEY:
            return 0


def backoff(attempts: Sequence[Attempt], policy: PolicySpec) -> timedelta:
    """How long after the end of the last attempt the next one waits.

    The first restart without progress is immediate; each further one waits twice as long as the
    one before, spread over the upper half of that wait.
    """
    last = attempts[-1]
    if last.verdict is None or RETRY_CLASS[last.verdict] is RetryClass.OBEY:
        return timedelta(0)
    ends = spent(attempts, last.verdict, policy).ends
    if ends <= 1:
        return timedelta(0)
    seconds = min(policy.backoff_seconds * 2.0 ** min(ends - 2, 30), policy.max_backoff_seconds)
    return timedelta(seconds=seconds * (0.5 + 0.5 * _spread(last)))


def _spread(attempt: Attempt) -> float:
    """A number in [0, 1) that belongs to this attempt."""
    digest = hashlib.sha256(f"{attempt.run_id}/{attempt.number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
