"""Each mutant must be caught: an oracle that nothing can upset is worth nothing."""

from __future__ import annotations

import pytest

from tests.scenarios.mutants import MUTANTS
from tests.scenarios.schedule import Failed, Simulation

SEEDS = 200
QUICK = ("keeps_hosts", "oldest_checkpoint")


def seeds_until_caught(name: str) -> int | None:
    """How many schedules ran until one failed; None where none did."""
    with MUTANTS[name]():
        for seed in range(SEEDS):
            try:
                Simulation(seed).run()
            except Failed:
                return seed + 1
    return None


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_caught_at_once(name: str) -> None:
    assert seeds_until_caught(name) is not None


@pytest.mark.soak
@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name: str) -> None:
    caught = seeds_until_caught(name)
    print(f"{name}: caught by seed {caught}")
    assert caught is not None
