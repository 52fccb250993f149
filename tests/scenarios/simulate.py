"""Many schedules, and what they reached: `python -m tests.scenarios.simulate --seeds N`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.scenarios.schedule import Failed, Simulation

STATES = (
    "queued",
    "provisioning",
    "starting",
    "running",
    "recovering",
    "stopping",
    "paused",
    "succeeded",
    "failed",
    "cancelled",
)


def table(coverage: Counter[tuple[str, str]]) -> str:
    """Faults by the state of the run that they met."""
    faults = sorted({fault for fault, _ in coverage})
    width = max(map(len, faults), default=0)
    rows = [" " * width + "".join(f"{state:>13}" for state in STATES)]
    for fault in faults:
        counts = "".join(f"{coverage[fault, state] or '-':>13}" for state in STATES)
        rows.append(f"{fault:<{width}}{counts}")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--keep-going", action="store_true", help="past a seed that fails")
    parser.add_argument("--lines", action="store_true", help="print the whole schedule")
    given = parser.parse_args()
    began = time.monotonic()
    coverage: Counter[tuple[str, str]] = Counter()
    faults, failed = 0, 0
    for number, seed in enumerate(range(given.start, given.start + given.seeds), start=1):
        simulation = Simulation(seed)
        try:
            simulation.run()
        except Failed as error:
            failed += 1
            print(error, flush=True)
            if not given.keep_going:
                return 1
        if given.lines:
            print("\n".join(simulation.lines))
        coverage += simulation.coverage
        faults += simulation.faults
        if number % 100 == 0 or number == given.seeds:
            spent = time.monotonic() - began
            print(f"{number} seeds, {faults} faults, {failed} failed, {spent:.1f} s", flush=True)
    print(table(coverage))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
