"""200 schedules by seed, with every invariant checked after every moment of each."""

from __future__ import annotations

import pytest

from tests.scenarios.schedule import STEPS, Simulation

SEEDS = 200
CHUNK = 25


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_invariant_holds_under_any_schedule(first: int) -> None:
    faults = 0
    for seed in range(first, first + CHUNK):
        simulation = Simulation(seed)
        simulation.run()
        faults += simulation.faults
    assert STEPS >= 200
    assert faults >= 10 * CHUNK


def test_a_seed_replays_exactly() -> None:
    first, second = Simulation(3), Simulation(3)
    first.run()
    second.run()
    assert first.lines == second.lines
