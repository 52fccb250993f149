"""Each mutant must be caught: an oracle that nothing can upset is worth nothing."""

from __future__ import annotations

import pytest

from tests.scenarios.mutants import MUTANTS
from tests.scenarios.schedule import Failed, Simulation

SEEDS = 200
QUICK = ("keeps_hosts", "acts_before_commit", "deletes_too_early")
NUMBERED = ("1", "2", "3", "4", "5", "6", "7", "11", "12", "13", "14", "16")
INVARIANTS = (*NUMBERED, "Revision", "Fork", "Limit", "Hold", "Dead man")


def caught(name: str) -> Failed | None:
    """By the first seed that fails; None where none does."""
    with MUTANTS[name]():
        for seed in range(SEEDS):
            try:
                Simulation(seed).run()
            except Failed as failed:
                return failed
    return None


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_every_invariant_has_a_mutant(invariant: str) -> None:
    broken = [(mutant.__doc__ or "").partition(":")[0] for mutant in MUTANTS.values()]
    assert invariant in broken


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_caught_at_once(name: str) -> None:
    assert caught(name) is not None


@pytest.mark.soak
@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name: str) -> None:
    failed = caught(name)
    assert failed is not None
    print(f"{name}: caught by seed {failed.seed}: {failed.words}")
