"""Many schedules, and what they reached: `python -m tests.scenarios.simulate --seeds N --jobs 2`.

One schedule, told whole and made small where it fails: `--seed N --show`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tests.scenarios import coverage
from tests.scenarios.schedule import Failed
from tests.scenarios.shrink import Case, numbers, shrink

CHUNK = 20
TOLD_EVERY = 200


@dataclass
class Outcome:
    """What some seeds came to. `least_faults` is that of the seed with the fewest."""

    seeds: int = 0
    steps: int = 0
    faults: int = 0
    least_faults: int = sys.maxsize
    least_steps: int = sys.maxsize
    reached: coverage.Coverage = field(default_factory=Counter[tuple[str, str]])
    failed: dict[int, str] = field(default_factory=dict[int, str])

    def add(self, other: Outcome) -> None:
        self.seeds += other.seeds
        self.steps += other.steps
        self.faults += other.faults
        self.least_faults = min(self.least_faults, other.least_faults)
        self.least_steps = min(self.least_steps, other.least_steps)
        self.reached += other.reached
        self.failed.update(other.failed)


def run(seed: int) -> Outcome:
    simulation = Case(seed).simulation()
    failed: dict[int, str] = {}
    try:
        simulation.run()
    except Failed as error:
        failed[seed] = str(error)
    steps, faults = simulation.chaos_steps, simulation.faults
    return Outcome(1, steps, faults, faults, steps, simulation.coverage, failed)


def run_all(seeds: range) -> Outcome:
    outcome = Outcome()
    for seed in seeds:
        outcome.add(run(seed))
    return outcome


def outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    """In the order of the seeds, whichever process ran them."""
    chunks = [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]
    if jobs < 2:
        yield from map(run_all, chunks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(run_all, chunks)


def simulate(seeds: range, jobs: int, *, keep_going: bool, quiet: bool) -> Outcome:
    began, whole = time.monotonic(), Outcome()
    for outcome in outcomes(seeds, jobs):
        whole.add(outcome)
        for words in outcome.failed.values():
            print(words, file=sys.stderr, flush=True)
        if whole.failed and not keep_going:
            break
        if not quiet and (whole.seeds % TOLD_EVERY == 0 or whole.seeds == len(seeds)):
            spent = time.monotonic() - began
            told = f"{whole.seeds} seeds, {whole.faults} faults, {len(whole.failed)} failed"
            print(f"{told}, {spent:.1f} s", flush=True)
    return whole


def show(case: Case, *, small: bool) -> int:
    """Tells one schedule whole; one that fails is made small first."""
    failed = case.failure()
    if failed is not None and small:
        case = shrink(case, failed)
    simulation = case.simulation()
    try:
        simulation.run()
    except Failed as error:
        print("\n".join(simulation.lines))
        print(f"{error.words}\nAgain: python -m tests.scenarios.simulate {case.arguments} --show")
        return 1
    print("\n".join(simulation.lines))
    print(f"{simulation.chaos_steps} steps, {simulation.faults} faults: every invariant held")
    return 0


def as_json(outcome: Outcome, seconds: float) -> str:
    told = {
        "seeds": outcome.seeds,
        "steps": outcome.steps,
        "faults": outcome.faults,
        "least_faults": outcome.least_faults,
        "least_steps": outcome.least_steps,
        "failed": sorted(outcome.failed),
        "seconds": round(seconds, 1),
        "missed": [list(cell) for cell in coverage.missed(outcome.reached)],
        "coverage": coverage.as_json(outcome.reached),
    }
    return json.dumps(told)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--keep-going", action="store_true", help="past a seed that fails")
    parser.add_argument("--json", action="store_true", help="one JSON object, on the last line")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument(
        "--show", action="store_true", help="tell the schedule; shrink a failing one"
    )
    parser.add_argument("--steps", type=int, help="with --seed: the last step before the calm")
    parser.add_argument("--leave-out", default="", metavar="STEPS", help="with --seed: 3,7-20")
    parser.add_argument("--quiet", action="store_true", help="with --seed: no call fails by chance")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    if given.seed is not None:
        case = Case(given.seed, given.steps, numbers(given.leave_out), given.quiet)
        return show(case, small=given.steps is None)
    began = time.monotonic()
    seeds = range(given.start, given.start + given.seeds)
    outcome = simulate(seeds, given.jobs, keep_going=given.keep_going, quiet=given.json)
    if given.json:
        print(as_json(outcome, time.monotonic() - began))
    else:
        print(coverage.table(outcome.reached))
        for fault, state in coverage.missed(outcome.reached):
            print(f"not reached: {fault} while {state}")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
