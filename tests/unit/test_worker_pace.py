"""How fast a process trains, told once in a while."""

from __future__ import annotations

from worker.pace import LEAST_STEPS, WINDOW_SECONDS, PaceWindow
from worker.protocol import StepPace


def test_a_window_tells_the_medians_of_its_steps_and_begins_anew() -> None:
    window = PaceWindow()
    told = [window.add(step, 10.0, own, 0.5) for step, own in enumerate((1, 2, 30, 3, 4, 5), 1)]
    assert told[:5] == [None] * 5
    expected = StepPace(step=6, steps=6, seconds=10.0, own=3.5, data_wait=0.5)
    assert told[5] == expected, "no process works for longer than its step takes"
    assert window.add(7, WINDOW_SECONDS - 0.1, 1.0, 0.0) is None


def test_a_few_long_steps_are_no_window() -> None:
    window = PaceWindow()
    told = [window.add(step, WINDOW_SECONDS, 1.0, 0.0) for step in range(LEAST_STEPS)]
    assert [one is not None for one in told] == [False] * (LEAST_STEPS - 1) + [True]
