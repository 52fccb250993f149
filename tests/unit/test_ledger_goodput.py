"""The goodput ledger: categories that always sum to the wall clock, and fall where they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.goodput import (
    HOUR,
    AttemptTime,
    Category,
    GroupTime,
    RunTime,
    Span,
    account,
    shares,
)

ROOT = Path(__file__).parents[2]
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
    data_waits=LENGTH,
    init=LENGTH,
    restore=LENGTH,
    compile=LENGTH,
    phase=st.sampled_from([None, Category.INIT, Category.RESTORE, Category.COMPILE]),
    phase_at=st.none() | INSTANT,
    tail=st.sampled_from([Category.HANG, Category.LOST, Category.STOPPING]),
)
GROUPS = st.builds(
    GroupTime, asked_at=INSTANT, ready_at=st.none() | INSTANT, gone_at=st.none() | INSTANT
)
RUNS = st.builds(
    RunTime,
    submitted_at=INSTANT,
    until=INSTANT,
    groups=st.lists(GROUPS, max_size=4).map(tuple),
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
    ledger = account(RunTime(0, now, (GroupTime(queued, queued),), tuple(made)))
    sums = [sum(column) for column in zip(*attempts, strict=True)]
    assert ledger.parts[Category.QUEUED] == queued
    assert ledger.parts[Category.BOOTSTRAPPING] == sums[0]
    assert ledger.parts[Category.PRODUCTIVE] == sums[1]
    assert ledger.parts[Category.REPLAYED] == sums[2]
    assert ledger.parts[Category.LOST] == sums[3]
    assert ledger.parts[Category.UNACCOUNTED] == 0


def parts(time: RunTime) -> dict[str, int]:
    return {str(name): amount for name, amount in account(time).parts.items() if amount}


def test_a_run_that_waits_is_queued_and_then_gets_hosts() -> None:
    assert parts(RunTime(0, 50)) == {"queued": 50}
    asked = GroupTime(20)
    assert parts(RunTime(0, 50, (asked,))) == {"queued": 20, "provisioning": 30}
    ready = GroupTime(20, 45)
    found = {"queued": 20, "provisioning": 25, "bootstrapping": 5}
    assert parts(RunTime(0, 50, (ready,))) == found


def test_hosts_that_were_lost_before_any_attempt_are_asked_for_again() -> None:
    groups = (GroupTime(10, 20, 30), GroupTime(35, 40))
    assert parts(RunTime(0, 50, groups)) == {
        "queued": 10,
        "provisioning": 10 + 5,
        "bootstrapping": 10 + 10,
        "recovering": 5,
    }


def test_a_pause_before_the_first_attempt() -> None:
    time = RunTime(0, 50, (GroupTime(40),), pauses=(Span(10, 30),))
    assert parts(time) == {"queued": 20, "paused": 20, "provisioning": 10}


HELD = (GroupTime(0, 0),)
FIRST = AttemptTime(0, first_dispatch_at=0, last_step_at=10, ended_at=10, new_steps=10)


def test_a_gap_on_the_same_hosts_is_recovering_and_after_a_pause_bootstrapping() -> None:
    second = AttemptTime(40, ended_at=50)
    time = RunTime(0, 50, HELD, (FIRST, second), (Span(15, 30),))
    found = {"productive": 10, "recovering": 5, "paused": 15, "bootstrapping": 20}
    assert parts(time) == found


def test_a_gap_with_new_hosts_is_told_by_what_they_were_waited_for() -> None:
    second = AttemptTime(40, ended_at=40)
    groups = (GroupTime(0, 0, 18), GroupTime(20, 33))
    found = {"productive": 10, "recovering": 10, "provisioning": 13, "bootstrapping": 7}
    assert parts(RunTime(0, 40, groups, (FIRST, second))) == found
    resumed = RunTime(0, 40, groups, (FIRST, second), (Span(10, 19),))
    found = {
        "productive": 10,
        "paused": 9,
        "queued": 1,
        "provisioning": 13,
        "bootstrapping": 7,
    }
    assert parts(resumed) == found


def test_the_phases_of_a_start_are_told_apart() -> None:
    attempt = AttemptTime(
        0, first_dispatch_at=100, last_step_at=110, steps=1, new_steps=10, init=5, restore=20
    )
    time = RunTime(0, 110, HELD, (attempt,))
    found = {"bootstrapping": 75, "init": 5, "restore": 20, "productive": 10}
    assert parts(time) == found
    slow = replace(attempt, compile=300)
    found = {"compile": 100, "productive": 10}
    assert parts(replace(time, attempts=(slow,))) == found


def test_an_attempt_that_never_took_a_step_was_in_the_phase_that_it_told_last() -> None:
    attempt = AttemptTime(0, ended_at=100, init=5, restore=20, phase=Category.COMPILE, phase_at=40)
    time = RunTime(0, 100, HELD, (attempt,))
    found = {"bootstrapping": 15, "init": 5, "restore": 20, "compile": 60}
    assert parts(time) == found
    hung = replace(attempt, tail=Category.HANG)
    found = {"bootstrapping": 15, "init": 5, "restore": 20, "hang": 60}
    assert parts(replace(time, attempts=(hung,))) == found


def test_new_steps_that_waited_for_data_were_not_productive_meanwhile() -> None:
    attempt = replace(FIRST, data_waits=4)
    time = RunTime(0, 10, HELD, (attempt,))
    assert parts(time) == {"productive": 6, "data_wait": 4}


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
    assert parts(RunTime(0, 130, HELD, (attempt,))) == {
        "bootstrapping": 10,
        "productive": 100 - (12 + 13 - 9),
        "checkpoint": 12,
        "eval": 13,
        "lost": 20 - 9,
    }


def test_the_step_under_way_is_productive_for_as_long_as_a_step_takes() -> None:
    attempt = AttemptTime(0, first_dispatch_at=0, last_step_at=40, steps=4, new_steps=40)
    assert parts(RunTime(0, 47, HELD, (attempt,))) == {"productive": 47}
    assert parts(RunTime(0, 90, HELD, (attempt,))) == {"productive": 50, "unaccounted": 40}


def test_goodput_leaves_out_waiting_for_hosts_and_for_people() -> None:
    attempt = AttemptTime(20, first_dispatch_at=30, last_step_at=60, ended_at=60, new_steps=30)
    ledger = account(RunTime(0, 100, (GroupTime(20, 20),), (attempt,), (Span(60, 100),)))
    assert ledger.goodput == 30 / 40
    assert account(RunTime(0, 10)).goodput is None


def test_the_documentation_tells_each_category() -> None:
    rows = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert [name for name in Category if f"| `{name}` |" not in rows] == []


PRICED = st.builds(
    GroupTime,
    asked_at=INSTANT,
    ready_at=st.none() | INSTANT,
    gone_at=st.none() | INSTANT,
    price_per_hour=st.none() | st.floats(0, 1000),
)


@given(RUNS, st.lists(PRICED, max_size=4).map(tuple))
def test_the_categories_costs_sum_to_what_the_hosts_cost(
    time: RunTime, groups: tuple[GroupTime, ...]
) -> None:
    time = replace(time, groups=groups)
    until = max(time.until, time.submitted_at)
    expected = 0.0
    for group in groups:
        if group.ready_at is not None:
            gone = until if group.gone_at is None else group.gone_at
            held = max(0, gone - max(group.ready_at, time.submitted_at))
            expected += held / HOUR * (group.price_per_hour or 0.0)
    assert account(time).cost == pytest.approx(expected)


def test_each_second_costs_what_its_hosts_cost() -> None:
    hour = HOUR
    groups = (GroupTime(0, 0, 4 * hour, 2.0), GroupTime(4 * hour, 5 * hour, 8 * hour, 10.0))
    first = AttemptTime(0, first_dispatch_at=hour, last_step_at=4 * hour, new_steps=3 * hour)
    first = replace(first, ended_at=4 * hour)
    second = AttemptTime(5 * hour, first_dispatch_at=5 * hour, last_step_at=7 * hour)
    second = replace(second, new_steps=2 * hour, ended_at=7 * hour)
    ledger = account(RunTime(0, 7 * hour, groups, (first, second)))
    costs = {str(name): cost for name, cost in ledger.costs.items() if cost}
    assert costs == {"bootstrapping": 2.0, "productive": 6.0 + 20.0, "stopping": 10.0}
    assert ledger.parts[Category.PROVISIONING] == hour, "which costs nothing yet"
