"""The goodput ledger: where every second of a run went.

Owns the categories and the arithmetic. Pure: whole microseconds in, whole microseconds out, so
that the categories sum to the wall clock exactly. Must not import the store, the API or a clock.

| category | its time |
| --- | --- |
| queued | submitted, and no hosts asked for yet |
| starting | hosts asked for, or a person's resume, until the attempt's first step is dispatched |
| productive | steps trained for the first time, and the step under way |
| replayed | steps trained again, because the crash came after the checkpoint |
| checkpoint | the training loop waited for a save |
| eval | the training loop evaluated |
| stopping | last step until the attempt's end was known: final save, exit, or a fault noticed |
| recovering | end of an attempt until the next is made, with nobody asked |
| paused | nothing runs until a person wishes it, or wished it so |
| unaccounted | the rest |

Goodput is productive / (wall - queued - paused): waiting for hosts or for a person is no work
lost by the run. It is None until an attempt had time at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Category(StrEnum):
    PRODUCTIVE = "productive"
    REPLAYED = "replayed"
    CHECKPOINT = "checkpoint"
    EVAL = "eval"
    STARTING = "starting"
    STOPPING = "stopping"
    RECOVERING = "recovering"
    PAUSED = "paused"
    QUEUED = "queued"
    UNACCOUNTED = "unaccounted"


@dataclass(frozen=True)
class Span:
    """Microseconds since any one origin; `end` is never before `start`."""

    start: int
    end: int


@dataclass(frozen=True)
class AttemptTime:
    """One attempt, all in microseconds; instants on the wall clock, durations monotonic.

    `first_dispatch_at` is when its first step began, `last_step_at` when its newest one was
    complete. `steps` counts its steps; `new_steps` and `replayed_steps` are the sums of their
    durations, which contain the stalls and evaluations between steps: `stalls` and `evals` in all,
    `after_last_step` the part of those two that no step's duration contains. `ended_at` is None
    for a living attempt.
    """

    made_at: int
    first_dispatch_at: int | None = None
    last_step_at: int | None = None
    ended_at: int | None = None
    steps: int = 0
    new_steps: int = 0
    replayed_steps: int = 0
    stalls: int = 0
    evals: int = 0
    after_last_step: int = 0


@dataclass(frozen=True)
class RunTime:
    """One run from its submission to `until`: its end, or now. `attempts` in order."""

    submitted_at: int
    until: int
    hosts_asked_at: int | None = None
    attempts: tuple[AttemptTime, ...] = ()
    pauses: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """Microseconds for each category; they sum to `wall`."""

    wall: int
    parts: dict[Category, int] = field(default_factory=dict[Category, int])

    @property
    def goodput(self) -> float | None:
        base = self.wall - self.parts[Category.QUEUED] - self.parts[Category.PAUSED]
        return self.parts[Category.PRODUCTIVE] / base if base > 0 else None


def account(time: RunTime) -> Ledger:
    """The ledger of `time`. Instants out of order are clipped, never counted twice."""
    wall = max(0, time.until - time.submitted_at)
    parts = dict.fromkeys(Category, 0)
    cursor = time.submitted_at
    for number, attempt in enumerate(time.attempts):
        made = _clip(attempt.made_at, cursor, time.until)
        _gap(parts, time, Span(cursor, made), after_attempt=number > 0)
        ended = time.until if attempt.ended_at is None else attempt.ended_at
        cursor = _clip(ended, made, time.until)
        _attempt(parts, attempt, Span(made, cursor))
    _gap(parts, time, Span(cursor, max(cursor, time.until)), after_attempt=bool(time.attempts))
    parts[Category.UNACCOUNTED] += wall - sum(parts.values())
    return Ledger(wall, parts)


def _gap(parts: dict[Category, int], time: RunTime, gap: Span, *, after_attempt: bool) -> None:
    """Nothing runs here: paused where a pause says so, then what came before and after it."""
    pauses = [Span(max(p.start, gap.start), min(p.end, gap.end)) for p in time.pauses]
    pauses = [pause for pause in pauses if pause.end > pause.start]
    paused = _covered(pauses)
    parts[Category.PAUSED] += paused
    rest = gap.end - gap.start - paused
    if after_attempt:
        resumed = max((pause.end for pause in pauses), default=gap.end)
        starting = min(rest, gap.end - resumed)
        parts[Category.STARTING] += starting
        parts[Category.RECOVERING] += rest - starting
        return
    asked = gap.end if time.hosts_asked_at is None else time.hosts_asked_at
    asked = _clip(asked, gap.start, gap.end)
    after_asked = gap.end - asked - _covered([_after(pause, asked) for pause in pauses])
    parts[Category.STARTING] += after_asked
    parts[Category.QUEUED] += rest - after_asked


def _attempt(parts: dict[Category, int], attempt: AttemptTime, span: Span) -> None:
    length = span.end - span.start
    if attempt.first_dispatch_at is None:
        parts[Category.STARTING] += length
        return
    starting = _clip(attempt.first_dispatch_at, span.start, span.end) - span.start
    stepped = attempt.new_steps + attempt.replayed_steps
    inside = max(0, attempt.stalls + attempt.evals - attempt.after_last_step)
    net = max(0, stepped - inside)
    replayed = net * attempt.replayed_steps // stepped if stepped else 0
    last = span.end if attempt.last_step_at is None else attempt.last_step_at
    tail = span.end - _clip(last, span.start, span.end) if attempt.ended_at is not None else 0
    under_way = 0
    if attempt.ended_at is None and attempt.steps:
        under_way = min(span.end - _clip(last, span.start, span.end), stepped // attempt.steps)
    left = length
    for category, amount in (
        (Category.STARTING, starting),
        (Category.PRODUCTIVE, net - replayed + under_way),
        (Category.REPLAYED, replayed),
        (Category.CHECKPOINT, attempt.stalls),
        (Category.EVAL, attempt.evals),
        (Category.STOPPING, max(0, tail - attempt.after_last_step)),
    ):
        taken = min(left, max(0, amount))
        parts[category] += taken
        left -= taken


def _covered(spans: Iterable[Span]) -> int:
    """The length of the union of `spans`."""
    total, reached = 0, None
    for span in sorted(spans, key=lambda one: one.start):
        start = span.start if reached is None else max(span.start, reached)
        total += max(0, span.end - start)
        reached = span.end if reached is None else max(reached, span.end)
    return total


def _after(span: Span, instant: int) -> Span:
    start = max(span.start, instant)
    return Span(start, max(start, span.end))


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high)) if high >= low else low


def shares(ledger: Ledger) -> Sequence[tuple[Category, int, float]]:
    """Each category with its microseconds and its share of the wall clock, as listed."""
    wall = ledger.wall or 1
    return [(category, amount, amount / wall) for category, amount in ledger.parts.items()]
