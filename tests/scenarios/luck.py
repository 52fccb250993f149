"""What goes wrong, drawn step by step, and what was reached by it.

Owns which fault strikes which run when, what becomes of a call to the cloud, and the coverage.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.scenarios.coverage import goal
from tests.scenarios.faults import CALLS, FAULTS

if TYPE_CHECKING:
    from tests.scenarios.schedule import Simulation

OVER = ("succeeded", "failed", "cancelled")
AIMS = 40  # moments for which a seed is after one cell of the coverage table
GOALS_APART = 3


class Luck:
    """`armed` are faults that wait for the next call of their kind."""

    def __init__(self, sim: Simulation) -> None:
        self.armed: dict[str, str] = {}
        self.coverage = Counter[tuple[str, str]]()
        self._sim = sim
        self._goals, self._aimed = sim.seed * GOALS_APART, 0
        self._broken_releases: dict[str, int] = {}

    def heal(self) -> None:
        self.armed.clear()
        self._broken_releases.clear()

    # ---- faults ----------------------------------------------------------------------------------

    def fault(self) -> None:
        """The first drawn that finds something to hit."""
        rng = self._sim.rng
        names, weights = list(FAULTS), [weight for weight, _ in FAULTS.values()]
        runs = self.wanted() if rng.random() < 0.9 else []
        for name in rng.choices(names, weights, k=3):
            if self._strike(name, rng.choice(runs or self._sim.people.runs)):
                return

    def wanted(self) -> list[str]:
        return [run_id for run_id, state, *_ in self._sim.oracle.runs() if state not in OVER]

    def _strike(self, name: str, run_id: str) -> bool:
        state = self._state(run_id)
        if not FAULTS[name][1](self._sim, run_id):
            return False
        self._covered(name, state)
        return True

    def aim(self) -> None:
        """Helps the seed to reach the cell of the coverage table that it is after."""
        name, state = goal(self._goals)
        self._aimed += 1
        if self.coverage[name, state] or self._aimed > AIMS:
            self._goals, self._aimed = self._goals + 1, 0
            return
        if name in FAULTS and self._sim.rng.random() < 0.5:
            for run_id in self._sim.people.runs:
                if self._state(run_id) == state:
                    self._strike(name, run_id)

    # ---- the cloud's calls -----------------------------------------------------------------------

    def cloud_fault(self, call: str, group: str) -> str | None:
        """What goes wrong with this call, None where nothing does."""
        sim, fault = self._sim, self.armed.pop(call, None)
        left = self._broken_releases.get(group, 0)
        if call == "release" and left:
            self._broken_releases[group] = left - 1
            return "before"
        if fault is None and not sim.hushed and sim.rng.random() < 0.04:
            fault = sim.rng.choice([how for how in CALLS.get(call, ()) if how != "refused"])
        if fault is not None and not group:
            for run_id in sim.people.runs:
                self.cover(f"{call}: {fault}", run_id)
        elif fault is not None:
            self.cover(f"{call}: {fault}", group.split("-")[2])
            sim.note(f"{call} {group} fails: {fault}")
            if fault == "refused":
                sim.world.harm("refused", group)
            if call == "release":
                self._broken_releases[group] = sim.rng.choice((0, 1, 3))
        return fault

    # ---- what was reached ------------------------------------------------------------------------

    def cover(self, fault: str, run_id: str) -> None:
        self._covered(fault, self._state(run_id))

    def _covered(self, fault: str, state: str) -> None:
        self.coverage[fault, state] += 1

    def _state(self, run_id: str) -> str:
        found = self._sim.database.rows("SELECT state FROM runs WHERE id = ?", run_id)
        return found[0][0] if found else "?"
