"""The goodput ledger: where every second of a run went.

Owns the categories and the arithmetic. Pure: whole microseconds in, whole microseconds out, so
that the categories sum to the wall clock exactly. Must not import the store, the API or a clock.

| category | its time |
| --- | --- |
| queued | wanted, and no hosts asked for yet |
| provisioning | hosts asked for, until all of them were up |
| bootstrapping | hosts up, until the trainer begins its state: agents, processes, imports |
| init | the trainer set up its data and its model |
| restore | it read a checkpoint |
| compile | it compiled, until the first step was dispatched |
| productive | steps trained for the first time, and the step under way |
| replayed | steps trained again, because the crash came after the checkpoint |
| data_wait | steps trained for the first time waited for data |
| checkpoint | the training loop waited for a save |
| eval | the training loop evaluated |
| hang | the last that was heard of a trainer which hung, until its end |
| lost | the last step until a fault was noticed and every trainer was known dead |
| stopping | the last step until the end, where people, a limit or the last step ended it |
| recovering | the end of an attempt until the next is made or hosts are asked for, nobody asked |
| paused | nothing runs until a person wishes it, or wished it so |
| unaccounted | the rest |

Goodput is productive / (wall - queued - paused): waiting for hosts or for a person is no work
lost by the run. It is None until an attempt had time at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

HOUR = 3_600_000_000


class Category(StrEnum):
    PRODUCTIVE = "productive"
    REPLAYED = "replayed"
    DATA_WAIT = "data_wait"
    CHECKPOINT = "checkpoint"
    EVAL = "eval"
    PROVISIONING = "provisioning"
    BOOTSTRAPPING = "bootstrapping"
    INIT = "init"
    RESTORE = "restore"
    COMPILE = "compile"
    HANG = "hang"
    LOST = "lost"
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
class GroupTime:
    """One host group: asked for, all up, and gone; None where that has not come to pass.

    `price_per_hour` is that of the whole group, None where it is not known.
    """

    asked_at: int
    ready_at: int | None = None
    gone_at: int | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True)
class AttemptTime:
    """One attempt, all in microseconds; instants on the wall clock, durations monotonic.

    `init`, `restore` and `compile` are the finished phases of its start; where it never dispatched
    a step, `phase` is the one that it was in since `phase_at`. `first_dispatch_at` is when its
    first step began, `last_step_at` when its newest one was complete. `steps` counts its steps;
    `new_steps` and `replayed_steps` are the sums of their durations, which contain the stalls and
    evaluations between steps: `stalls` and `evals` in all, `after_last_step` the part of those two
    that no step's duration contains. `data_waits` is the part of `new_steps` in which they waited
    for data. `ended_at` is None for a living attempt; `tail` is what the time from the last step
    to the end was.
    """

    made_at: int
    first_dispatch_at: int | None = None
    last_step_at: int | None = None
    ended_at: int | None = None
    steps: int = 0
    new_steps: int = 0
    replayed_steps: int = 0
    data_waits: int = 0
    stalls: int = 0
    evals: int = 0
    after_last_step: int = 0
    init: int = 0
    restore: int = 0
    compile: int = 0
    phase: Category | None = None
    phase_at: int | None = None
    tail: Category = Category.LOST


@dataclass(frozen=True)
class RunTime:
    """One run from its submission to `until`: its end, or now. `attempts` and `groups` in order."""

    submitted_at: int
    until: int
    groups: tuple[GroupTime, ...] = ()
    attempts: tuple[AttemptTime, ...] = ()
    pauses: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """Microseconds for each category, which sum to `wall`, and what the hosts cost meanwhile.

    `costs` are in the currency of the prices. Hosts cost from all up until gone; what they cost
    after the run's end counts as `stopping`.
    """

    wall: int
    parts: dict[Category, int] = field(default_factory=dict[Category, int])
    costs: dict[Category, float] = field(default_factory=dict[Category, float])

    @property
    def goodput(self) -> float | None:
        base = self.wall - self.parts[Category.QUEUED] - self.parts[Category.PAUSED]
        return self.parts[Category.PRODUCTIVE] / base if base > 0 else None

    @property
    def cost(self) -> float:
        return sum(self.costs.values())


def account(time: RunTime) -> Ledger:
    """The ledger of `time`. Instants out of order are clipped, never counted twice."""
    until = max(time.until, time.submitted_at)
    ledger = Ledger(
        until - time.submitted_at, dict.fromkeys(Category, 0), dict.fromkeys(Category, 0.0)
    )
    cursor = time.submitted_at
    for number, attempt in enumerate(time.attempts):
        made = _clip(attempt.made_at, cursor, until)
        _add_gap(ledger, time, Span(cursor, made), after_attempt=number > 0)
        ended = until if attempt.ended_at is None else attempt.ended_at
        cursor = _clip(ended, made, until)
        _add_attempt(ledger, time, attempt, Span(made, cursor))
    _add_gap(ledger, time, Span(cursor, until), after_attempt=bool(time.attempts))
    latest = max((group.gone_at or until for group in time.groups), default=until)
    ledger.costs[Category.STOPPING] += _cost(time, Span(until, max(until, latest)))
    return ledger


def _add_gap(ledger: Ledger, time: RunTime, gap: Span, *, after_attempt: bool) -> None:
    for category, piece in _gap(time, gap, after_attempt):
        ledger.parts[category] += piece.end - piece.start
        ledger.costs[category] += _cost(time, piece)


def _add_attempt(ledger: Ledger, time: RunTime, attempt: AttemptTime, span: Span) -> None:
    """Each part of it costs the same: nobody tells when each of its stalls was."""
    length, left = span.end - span.start, span.end - span.start
    cost = _cost(time, span)
    for category, amount in (*_attempt(attempt, span), (Category.UNACCOUNTED, length)):
        taken = min(left, max(0, amount))
        ledger.parts[category] += taken
        ledger.costs[category] += cost * taken / length if length else 0.0
        left -= taken


def _cost(time: RunTime, span: Span) -> float:
    """What the hosts cost that were held in the span."""
    total = 0.0
    for group in time.groups:
        if group.ready_at is not None and group.price_per_hour:
            gone = max(time.until, span.start) if group.gone_at is None else group.gone_at
            held = min(gone, span.end) - max(group.ready_at, span.start)
            total += max(0, held) / HOUR * group.price_per_hour
    return total


# ---- between attempts ----------------------------------------------------------------------------


def _gap(time: RunTime, gap: Span, after_attempt: bool) -> Iterator[tuple[Category, Span]]:
    """Nothing runs here: paused where a pause says so, else on the way to the next attempt."""
    cursor, wanted = gap.start, not after_attempt
    for pause in sorted(time.pauses, key=lambda one: one.start):
        start, end = _clip(pause.start, cursor, gap.end), _clip(pause.end, cursor, gap.end)
        if end == start:
            continue
        yield from _way(time.groups, Span(cursor, start), wanted)
        yield Category.PAUSED, Span(start, end)
        cursor, wanted = end, True
    yield from _way(time.groups, Span(cursor, gap.end), wanted)


def _way(groups: Sequence[GroupTime], way: Span, wanted: bool) -> Iterator[tuple[Category, Span]]:
    """`wanted`: people asked for what follows, so that the run queues where it has no hosts."""
    cursor = way.start
    held = any(one.asked_at < way.start and not _gone(one, way.start) for one in groups)
    waits = Category.QUEUED if wanted and not held else Category.RECOVERING
    for group in groups:
        asked = _clip(group.asked_at, cursor, way.end)
        gone = way.end if group.gone_at is None else _clip(group.gone_at, asked, way.end)
        if gone <= cursor or group.asked_at > way.end:
            continue
        kept = group.asked_at < way.start and (group.ready_at or way.start) <= way.start
        if kept and not wanted:
            continue  # the next attempt waits for no hosts
        ready = gone if group.ready_at is None else _clip(group.ready_at, asked, gone)
        yield waits, Span(cursor, asked)
        yield Category.PROVISIONING, Span(asked, ready)
        yield Category.BOOTSTRAPPING, Span(ready, gone)
        cursor, waits = gone, Category.RECOVERING
    yield waits, Span(cursor, way.end)


def _gone(group: GroupTime, at: int) -> bool:
    return group.gone_at is not None and group.gone_at <= at


# ---- an attempt ----------------------------------------------------------------------------------


def _attempt(attempt: AttemptTime, span: Span) -> list[tuple[Category, int]]:
    """Its categories in the order in which they are believed, where they are too long together."""
    if attempt.first_dispatch_at is None:
        return _never_stepped(attempt, span)
    first = _clip(attempt.first_dispatch_at, span.start, span.end)
    stepped = attempt.new_steps + attempt.replayed_steps
    inside = max(0, attempt.stalls + attempt.evals - attempt.after_last_step)
    net = max(0, stepped - inside)
    replayed = net * attempt.replayed_steps // stepped if stepped else 0
    waited = min(attempt.data_waits, net - replayed)
    last = span.end if attempt.last_step_at is None else attempt.last_step_at
    tail = span.end - _clip(last, span.start, span.end) if attempt.ended_at is not None else 0
    under_way = 0
    if attempt.ended_at is None and attempt.steps:
        under_way = min(span.end - _clip(last, span.start, span.end), stepped // attempt.steps)
    return [
        *_start(attempt, first - span.start),
        (Category.PRODUCTIVE, net - replayed - waited + under_way),
        (Category.REPLAYED, replayed),
        (Category.DATA_WAIT, waited),
        (Category.CHECKPOINT, attempt.stalls),
        (Category.EVAL, attempt.evals),
        (attempt.tail, tail - attempt.after_last_step),
    ]


def _never_stepped(attempt: AttemptTime, span: Span) -> list[tuple[Category, int]]:
    begun = span.end if attempt.phase_at is None else attempt.phase_at
    begun = _clip(begun, span.start, span.end)
    hung = attempt.ended_at is not None and attempt.tail is Category.HANG
    under_way = Category.HANG if hung else attempt.phase or Category.BOOTSTRAPPING
    return [*_start(attempt, begun - span.start), (under_way, span.end - begun)]


def _start(attempt: AttemptTime, length: int) -> list[tuple[Category, int]]:
    """The phases that were told of; whatever came before them is the way to the trainer."""
    found, left = list[tuple[Category, int]](), length
    for category, amount in (
        (Category.COMPILE, attempt.compile),
        (Category.RESTORE, attempt.restore),
        (Category.INIT, attempt.init),
    ):
        taken = min(left, max(0, amount))
        found.append((category, taken))
        left -= taken
    return [*found, (Category.BOOTSTRAPPING, left)]


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high)) if high >= low else low


def shares(ledger: Ledger) -> Sequence[tuple[Category, int, float]]:
    """Each category with its microseconds and its share of the wall clock, as listed."""
    wall = ledger.wall or 1
    return [(category, amount, amount / wall) for category, amount in ledger.parts.items()]
