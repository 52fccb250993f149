"""Makes a failing schedule small: leaves out what it does not need to fail in the same way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tests.scenarios.schedule import Failed, Simulation

MOST_RUNS = 120


@dataclass(frozen=True)
class Case:
    """What has to be said to see a failure again. `steps` is the last one of the chaos."""

    seed: int
    steps: int | None = None
    left_out: frozenset[int] = frozenset()
    quiet: bool = False

    def simulation(self) -> Simulation:
        return Simulation(self.seed, self.steps, self.left_out, self.quiet)

    def failure(self) -> Failed | None:
        try:
            self.simulation().run()
        except Failed as failed:
            return failed
        return None

    @property
    def arguments(self) -> str:
        parts = [f"--seed {self.seed}"]
        if self.steps is not None:
            parts.append(f"--steps {self.steps}")
        if self.left_out:
            parts.append(f"--leave-out {ranges(self.left_out)}")
        return " ".join([*parts, "--quiet"] if self.quiet else parts)


def kind(words: str) -> str:
    """Which promise was broken: "inv. 6", "liveness", or an error's type."""
    return words.partition(":")[0]


def shrink(case: Case, failed: Failed, most_runs: int = MOST_RUNS) -> Case:
    """Greedy: halves, quarters, … of the steps left out for as long as it fails alike."""
    search = _Search(kind(failed.words), most_runs)
    case = replace(case, steps=failed.chaos_steps)
    case = search.keep(case, replace(case, quiet=True))
    steps = [step for step in range(1, failed.chaos_steps + 1) if step not in case.left_out]
    size = max(1, len(steps) // 2)
    while size and search.left:
        for start in range(0, len(steps), size):
            less = case.left_out | set(steps[start : start + size])
            case = search.keep(case, replace(case, left_out=frozenset(less)))
        steps = [step for step in steps if step not in case.left_out]
        size = min(size // 2, len(steps))
    return case


class _Search:
    """`left` is how many runs it may still take."""

    def __init__(self, wanted: str, left: int) -> None:
        self.left = left
        self._wanted = wanted

    def keep(self, case: Case, smaller: Case) -> Case:
        """The smaller case if it fails alike."""
        if not self.left or smaller == case:
            return case
        self.left -= 1
        failed = smaller.failure()
        return smaller if failed is not None and kind(failed.words) == self._wanted else case


def ranges(numbers: Iterable[int]) -> str:
    """`3,7-20`."""
    parts: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def numbers(text: str) -> frozenset[int]:
    """The opposite of `ranges`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
