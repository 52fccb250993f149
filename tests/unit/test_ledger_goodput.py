"""The goodput ledger: categories that always sum to the wall clock, and fall where they should."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.goodput import AttemptTime, Category, RunTime, Span, account, shares

INSTANT = st.integers(-(10**6), 10**6)
LENGTH = st.integers(0, 10**6)
SPANS = st.tuples(INSTANT, LENGTH).map(lambda pair: Span(pair[0], pair[0] + pair[1]))
ATTEMPTS = st.builds(
    AttemptTime,
    made_at=INSTANT,
    first_dispatch_at=st.none() | INSTANT,
    last_step_at=st.none() | INSTANT,
    ended_at=st.none() | INSTANT,
    steps=st.integers(0, 1000),
    new_steps=LENGTH,
    replayed_steps=LENGTH,
    stalls=LENGTH,
    evals=LENGTH,
    after_last_step=LENGTH,
)
RUNS = st.builds(
    RunTime,
    submitted_at=INSTANT,
    until=INSTANT,
    hosts_asked_at=st.none() | INSTANT,
    attempts=st.lists(ATTEMPTS, max_size=5).map(tuple),
    pauses=st.lists(SPANS, max_size=5).map(tuple),
)


@given(RUNS)
def test_the_categories_sum_to_the_wall_clock_whatever_was_reported(time: RunTime) -> None:
    ledger = account(time)
    assert sum(ledger.parts.values()) == ledger.wall == max(0, time.until - time.submitted_at)
    assert all(amount >= 0 for amount in ledger.parts.values())
    assert set(ledger.parts) == set(Category)
    assert ledger.goodput is None or 0 <= ledger.goodput <= 1
    assert sum(amount for _, amount, _ in shares(ledger)) == ledger.wall


@given(st.lists(st.tuples(LENGTH, LENGTH, LENGTH, LENGTH), min_size=1, max_size=5), LENGTH)
def test_time_that_was_told_in_full_leaves_nothing_unaccounted(
    attempts: list[tuple[int, int, int, int]], queued: int
) -> None:
    now, made = queued, []
    for starting, new, again, tail in attempts:
        first, last = now + starting, now + starting + new + again
        made.append(
            AttemptTime(
                made_at=now,
                first_dispatch_at=first,
                last_step_at=last,
                ended_at=last + tail,
                steps=1,
                new_steps=new,
                replayed_steps=again,
            )
        )
        now = last + tail
    ledger = account(RunTime(0, now, queued, tuple(made)))
    sums = [sum(column) for column in zip(*attempts, strict=True)]
    assert ledger.parts[Category.QUEUED] == queued
    assert ledger.parts[Category.STARTING] == sums[0]
    assert ledger.parts[Category.PRODUCTIVE] == sums[1]
    assert ledger.parts[Category.REPLAYED] == sums[2]
    assert ledger.parts[Category.STOPPING] == sums[3]
    assert ledger.parts[Category.UNACCOUNTED] == 0


def parts(time: RunTime) -> dict[str, int]:
    return {str(name): amount for name, amount in account(time).parts.items() if amount}


def test_a_run_that_waits_is_queued_and_then_starting() -> None:
    assert parts(RunTime(0, 50)) == {"queued": 50}
    assert parts(RunTime(0, 50, hosts_asked_at=20)) == {"queued": 20, "starting": 30}


def test_a_pause_before_the_first_attempt() -> None:
    time = RunTime(0, 50, hosts_asked_at=40, pauses=(Span(10, 30),))
    assert parts(time) == {"queued": 20, "paused": 20, "starting": 10}


def test_a_gap_is_recovering_until_a_pause_and_starting_after_it() -> None:
    first = AttemptTime(0, first_dispatch_at=0, last_step_at=10, ended_at=10, new_steps=10)
    second = AttemptTime(40, ended_at=50)
    time = RunTime(0, 50, 0, (first, second), (Span(15, 30),))
    assert parts(time) == {"productive": 10, "recovering": 5, "paused": 15, "starting": 20}


def test_stalls_and_evaluations_are_taken_out_of_the_steps_that_contain_them() -> None:
    attempt = AttemptTime(
        0,
        first_dispatch_at=10,
        last_step_at=110,
        ended_at=130,
        steps=10,
        new_steps=100,
        stalls=12,
        evals=13,
        after_last_step=9,
    )
    assert parts(RunTime(0, 130, 0, (attempt,))) == {
        "starting": 10,
        "productive": 100 - (12 + 13 - 9),
        "checkpoint": 12,
        "eval": 13,
        "stopping": 20 - 9,
    }


def test_the_step_under_way_is_productive_for_as_long_as_a_step_takes() -> None:
    attempt = AttemptTime(0, first_dispatch_at=0, last_step_at=40, steps=4, new_steps=40)
    assert parts(RunTime(0, 47, 0, (attempt,))) == {"productive": 47}
    assert parts(RunTime(0, 90, 0, (attempt,))) == {"productive": 50, "unaccounted": 40}


def test_goodput_leaves_out_waiting_for_hosts_and_for_people() -> None:
    attempt = AttemptTime(20, first_dispatch_at=30, last_step_at=60, ended_at=60, new_steps=30)
    ledger = account(RunTime(0, 100, 20, (attempt,), (Span(60, 100),)))
    assert ledger.goodput == 30 / 40
    assert account(RunTime(0, 10)).goodput is None
