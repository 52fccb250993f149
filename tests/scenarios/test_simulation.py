"""200 schedules by seed, with every invariant checked after every moment of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.scenarios import coverage
from tests.scenarios.mutants import MUTANTS
from tests.scenarios.schedule import MIN_FAULTS, STEPS, Simulation
from tests.scenarios.shrink import Case, kind, numbers, ranges, shrink

SEEDS = 200
JOBS = 2
RUN_SECONDS = 840


def simulate(*arguments: str, hash_seed: str = "random") -> str:
    command = [sys.executable, "-m", "tests.scenarios.simulate", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )
    assert done.returncode == 0, done.stderr[-10_000:]
    return done.stdout


@pytest.mark.timeout(900)
def test_every_invariant_holds_under_any_schedule_and_every_fault_meets_every_state() -> None:
    told = simulate("--seeds", str(SEEDS), "--jobs", str(JOBS), "--json")
    found = json.loads(told.splitlines()[-1])
    assert found["seeds"] == SEEDS
    assert found["failed"] == []
    assert found["least_steps"] >= STEPS >= 200
    assert found["least_faults"] >= MIN_FAULTS >= 10
    assert found["missed"] == []


@pytest.mark.parametrize("seed", [3])
def test_a_seed_replays_exactly_in_any_process(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.run()
    for hash_seed in ("1", "2"):
        told = simulate("--seed", str(seed), "--show", hash_seed=hash_seed)
        assert told.splitlines()[:-1] == simulation.lines


def test_a_failing_schedule_is_made_small_and_fails_alike() -> None:
    with MUTANTS["keeps_hosts"]():
        seed, failed = next(
            (seed, failed) for seed in range(SEEDS) if (failed := Case(seed).failure()) is not None
        )
        small = shrink(Case(seed), failed, most_runs=25)
        again = small.failure()
    assert again is not None
    assert kind(again.words) == kind(failed.words)
    assert len(small.left_out) > failed.chaos_steps / 3
    assert f"--leave-out {ranges(small.left_out)}" in small.arguments


def test_the_steps_that_are_left_out_are_written_in_ranges() -> None:
    steps = frozenset({3, 7, 8, 9, 20})
    assert ranges(steps) == "3,7-9,20"
    assert numbers("3,7-9,20") == steps
    assert numbers("") == frozenset()


def test_the_table_tells_what_was_not_reached() -> None:
    reached = coverage.Coverage(dict.fromkeys(coverage.GOALS[1:], 1))
    assert coverage.missed(reached) == coverage.GOALS[:1]
    assert set(coverage.as_json(reached)) <= {fault for fault, _ in coverage.GOALS}
    assert all(fault in coverage.table(reached) for fault, _ in coverage.GOALS[1:])
