"""What a process knows of its own gaps, and how often it asks agents to report."""

from __future__ import annotations

import heapq
from collections import Counter

import pytest

from orchestrator.awake import GAP_SECONDS, Awake
from orchestrator.pace import Pace
from tests.scenarios.clock import FakeClock, PlaneClock


def test_a_process_that_stood_still_is_awake_since_it_went_on():
    clock = FakeClock()
    awake, start = Awake(clock), clock.now()
    for _ in range(20):
        clock.advance(GAP_SECONDS - 1)
        awake.beat()
    assert awake.since() == start
    clock.advance(GAP_SECONDS + 1)
    assert awake.since() == clock.now(), "also before anything else has run"
    gone_on = clock.now()
    clock.advance(1)
    assert awake.since() == gone_on


@pytest.mark.parametrize("seconds", [600, -600])
def test_a_step_of_the_wall_clock_is_no_silence_of_hosts(seconds: float):
    """Invariant 11: what was heard before it lies far back by the clock of now."""
    clock = PlaneClock(FakeClock())
    awake = Awake(clock)
    clock.jump(seconds)
    stepped = clock.now()
    assert awake.since() == stepped
    clock.jump(GAP_SECONDS - 1)  # a clock that is slewed is no step
    assert awake.since() == stepped


def test_few_agents_report_at_once_and_many_in_turns():
    pace = Pace(FakeClock())
    assert pace.next_report("g", 0, watched=False) == 0.05
    told = [pace.next_report(f"g{n}", 0, watched=False) for n in range(1000)]
    assert told == sorted(told)
    assert 20.0 <= told[-1] < 21.0
    assert pace.next_report("g1", 0, watched=True) == 0.25
    assert pace.silence(30.0) == 1.5 * pace.seconds


def test_agents_that_left_are_forgotten():
    clock = FakeClock()
    pace = Pace(clock)
    for n in range(1000):
        pace.next_report(f"g{n}", 0, watched=False)
    for _ in range(2):
        clock.advance(61)
        told = pace.next_report("g", 0, watched=False)
    assert told == 0.05


def test_after_a_start_all_come_at_once():
    pace = Pace(FakeClock())
    pace.expect(1_000)
    assert pace.next_report("g", 0, watched=False) == 20.0
    pace.expect(1_000_000)
    assert pace.next_report("g", 0, watched=False) == 55.0


def test_heartbeats_of_a_large_fleet_wait_for_each_other_and_those_of_a_small_one_do_not():
    pace = Pace(FakeClock())
    pace.expect(90)
    assert pace.gather == 0.0
    pace.expect(200)
    assert pace.gather == pytest.approx(0.1)
    pace.expect(100_000)
    assert pace.gather == 0.5


def test_agents_that_come_at_once_do_not_stay_together():
    clock = FakeClock()
    pace = Pace(clock)
    assert pace.patience("g", 0, 20.0) == 20.0, "a small fleet's are all held as long as they ask"
    pace.expect(1_000)
    first = Counter(int(pace.patience(f"g{n}", 0, 20.0)) for n in range(1_000))
    assert max(first.values()) <= 51, "all at once, and a second apart from then on"


def test_agents_that_came_together_again_are_spread_within_a_few_turns():
    clock = FakeClock()
    pace = Pace(clock)
    pace.expect(1_000)
    start = clock.monotonic()
    due = [(start + (n % 10) * 0.1, n) for n in range(1_000)]  # a crowd within a second
    for _, n in due:
        pace.next_report(f"g{n}", 0, watched=False)
    came: Counter[int] = Counter()
    held: list[float] = []
    heapq.heapify(due)
    while (at := due[0][0]) < start + 200:
        _, n = heapq.heappop(due)
        clock.advance(at - clock.monotonic())
        pace.next_report(f"g{n}", 0, watched=False)
        seconds = pace.patience(f"g{n}", 0, 20.0)
        assert 11.9 < seconds <= 20.0
        held.append(seconds)
        heapq.heappush(due, (at + seconds, n))
        came[int(at - start)] += 1
    late = [came[second] for second in range(100, 200)]
    assert came[0] == 1_000
    assert max(late) < 1.25 * 50
    assert sum(number < 0.8 * 50 for number in late) <= 10, "seconds in which few come"
    assert sum(held[-1_000:]) / 1_000 > 19.0, "and hardly more often than they asked for"
