"""Following a run: what it looks like now, again and again, and what is new since the last look.

Owns when a run counts as over for somebody who watches, and the sentences of its history. Printing
is left to `watch` and `demo`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.api.schemas import AttemptView, RunDetail
from orchestrator.cli import text
from orchestrator.cli.render import verdict
from orchestrator.client import Client, Unreachable
from orchestrator.state import TERMINAL_RUNS, Desired, RunState

LOOK_SECONDS = 0.5
GIVE_UP_SECONDS = 600.0


@dataclass(frozen=True)
class Frame:
    """One look at a run."""

    run: RunDetail
    attempts: tuple[AttemptView, ...]
    at: datetime


@dataclass(frozen=True)
class Lost:
    """The service did not answer; it is asked again."""

    error: Unreachable
    at: datetime


@dataclass(frozen=True)
class News:
    """One sentence of a run's history. `grave` where something was lost or waits for a person."""

    at: datetime
    words: str
    grave: bool = False


def frames(
    client: Client,
    run: str,
    *,
    every: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Frame | Lost]:
    """Looks at `run` every `every` seconds (else half a second) until it `is_over`.

    A service that does not answer is asked again for ten minutes, then `Unreachable` is raised;
    one that never answered at all raises it at once.
    """
    seen: Frame | None = None
    answered = monotonic()
    while True:
        try:
            seen = _look(client, run, seen)
        except Unreachable as error:
            if seen is None or monotonic() - answered > GIVE_UP_SECONDS:
                raise
            yield Lost(error, datetime.now(UTC))
        else:
            answered = monotonic()
            yield seen
            if is_over(seen.run):
                return
        sleep(LOOK_SECONDS if every is None else every)


def _look(client: Client, name: str, before: Frame | None) -> Frame:
    # By its id from the second look on: a name can be given to another run.
    run = client.run(before.run.id if before else name)
    # The run is read first: attempts read later know at least as much.
    stale = before is None or _shape(run) != _shape(before.run) or _replaying(before)
    attempts = client.attempts(run.id) if before is None or stale else before.attempts
    return Frame(run, attempts, datetime.now(UTC))


def _shape(run: RunDetail) -> tuple[object, ...]:
    return run.state, run.attempt, run.attempt_state, run.attempts, run.reason


def _replaying(frame: Frame) -> bool:
    """Whether attempts may change under an unchanged run: a verdict due, or steps compared."""
    newest = frame.attempts[-1] if frame.attempts else None
    if newest is None:
        return False
    undecided = newest.ended_at is not None and newest.verdict is None
    behind = len(frame.attempts) > 1 and not replay_is_over(frame.attempts, newest)
    return undecided or behind


def is_over(run: RunDetail) -> bool:
    """Nothing more happens without a person."""
    if run.state in TERMINAL_RUNS:
        return True
    waits = run.desired is Desired.PAUSE or run.needs_person
    return run.state is RunState.PAUSED and waits


def replay_is_over(attempts: tuple[AttemptView, ...], attempt: AttemptView) -> bool:
    """Whether `attempt` has trained again all that earlier attempts had trained."""
    earlier = [a.last_step or 0 for a in attempts if a.number < attempt.number]
    return attempt.last_step is not None and attempt.last_step >= max(earlier, default=0)


def news(before: Frame | None, now: Frame) -> tuple[News, ...]:
    """What happened between two looks, in order."""
    known = {attempt.number: attempt for attempt in before.attempts} if before else {}
    told = [
        sentence
        for attempt in now.attempts
        for sentence in _attempt_news(known.get(attempt.number), attempt, now)
    ]
    told.sort(key=lambda sentence: sentence.at)
    if before is None or before.run.state is not now.run.state:
        told += _state_news(now)
    return tuple(told)


def _attempt_news(before: AttemptView | None, now: AttemptView, frame: Frame) -> Iterator[News]:
    if before is None:
        origin = "from the beginning"
        if now.resume_checkpoint is not None:
            origin = f"from checkpoint {now.resume_checkpoint}, step {now.resumed_from_step:,}"
        processes = text.plural(now.processes, "process", "processes")
        yield News(now.created_at, f"attempt {now.number} starts {origin} ({processes})")
    if now.first_step_at is not None and (before is None or before.first_step_at is None):
        after = ""
        if now.recovery_seconds is not None:
            after = f", {text.seconds(now.recovery_seconds)} after the stop"
        yield News(now.first_step_at, f"attempt {now.number} trains{after}")
    if _replay_told(now, frame) and not (before is not None and _replay_told(before, frame)):
        yield _replay_news(now, frame)
    if now.verdict is not None and (before is None or before.verdict is not now.verdict):
        yield _verdict_news(before, now, frame)


def _replay_told(attempt: AttemptView, frame: Frame) -> bool:
    return (
        attempt.replayed_steps > 0
        and attempt.replayed_bit_identical is not None
        and (replay_is_over(frame.attempts, attempt) or attempt.ended_at is not None)
    )


def _replay_news(attempt: AttemptView, frame: Frame) -> News:
    again = f"attempt {attempt.number} trained {text.plural(attempt.replayed_steps, 'step')} again"
    at = attempt.ended_at or frame.at
    if attempt.replayed_bit_identical:
        return News(at, f"{again}: bit-identical")
    where = attempt.first_difference_step
    return News(at, f"{again}: NOT identical from step {where} on", grave=True)


def _verdict_news(before: AttemptView | None, now: AttemptView, frame: Frame) -> News:
    revised = before is not None and before.verdict is not None
    said = "is now judged" if revised else "ended as"
    words = f"attempt {now.number} {said} {verdict(now.verdict, now.state)}"
    if now.summary:
        words += f": {now.summary}"
    grave = str(now.verdict) not in {"completed", "cancelled", "paused", "superseded"}
    return News(now.ended_at or frame.at, text.clean(words), grave)


def _state_news(now: Frame) -> list[News]:
    run = now.run
    words = str(run.state)
    # What an attempt's verdict has said already is not said again.
    if run.reason and run.reason not in {attempt.summary for attempt in now.attempts}:
        words = run.reason if run.reason.startswith(words) else f"{words}: {run.reason}"
    elif run.waits_for and not run.reason:
        words += f": waits for {run.waits_for}"
    return [News(run.state_since, text.clean(words), grave=run.needs_person)]
