"""What is asked of every run that met a fault: that it ends as if it had met none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.harness import Plane, until


@dataclass(frozen=True)
class Told:
    """What is told of a run that is over, but for who trained what when.

    `steps` has step, loss, gradient norm and batch hash of each; `evals` step and loss; `digest` is
    that of the whole state after the last step.
    """

    steps: list[list[Any]]
    evals: list[list[Any]]
    digest: str

    @property
    def hashes(self) -> list[str]:
        return [step[3] for step in self.steps]


def told_of(service: Plane, run: str) -> Told:
    evals = [[one["step"], one["loss"]] for one in service.get(f"runs/{run}/metrics")["evals"]]
    steps = [list(point) for point in service.history(run)]
    digests = {one["step"]: one["state_digest"] for one in checkpoints(service, run)}
    return Told(steps, evals, digests[steps[-1][0]])


def attempts(service: Plane, run: str) -> list[dict[str, Any]]:
    return service.get(f"runs/{run}/attempts")["items"]


def stands_at(service: Plane, run: str, step: int) -> bool:
    """Whether the newest attempt has told of this step last."""
    tried = attempts(service, run)
    return bool(tried) and tried[-1]["last_step"] == step


def checkpoints(service: Plane, run: str) -> list[dict[str, Any]]:
    return service.get(f"runs/{run}/checkpoints")["items"]


def verdicts(service: Plane, run: str) -> list[str]:
    return [one["verdict"] for one in attempts(service, run)]


def check_outcome(
    service: Plane, run: str, expected: Told, attempts: int | None, seconds: float = 120.0
) -> None:
    """To the last bit that of an undisturbed run, after so many attempts, where that is known."""
    check_end(service, run, attempts, seconds)
    seen = told_of(service, run)
    assert seen.steps == expected.steps
    assert len(set(seen.hashes)) == len(seen.hashes), "no batch was trained twice"
    assert seen.evals == expected.evals
    assert seen.digest == expected.digest


def check_end(service: Plane, run: str, expected: int | None, seconds: float = 120.0) -> None:
    """It succeeded, what was trained again came out as it had, and nothing of it lives on."""
    detail = service.finish(run, seconds)
    assert detail["state"] == "succeeded", detail["reason"]
    tried = attempts(service, run)
    assert expected in (None, len(tried))
    for attempt in tried:
        assert attempt["first_difference_step"] is None
        assert attempt["replayed_bit_identical"] is not False
    incidents = service.get(f"runs/{run}/incidents")["items"]
    assert all(one["stopped"] for one in incidents), "every replay came out as it had"
    until(service.released, "every process of the run to be gone")
    check_ledger(service, run, len(tried))


def check_ledger(service: Plane, run: str, attempts: int) -> None:
    """Invariant 15: every second is in one category, and at most one in a hundred in none."""
    ledger = service.get(f"runs/{run}/goodput")
    parts = {part["category"]: part["seconds"] for part in ledger["parts"]}
    assert sum(parts.values()) == pytest.approx(ledger["wall_seconds"], abs=1e-5)
    assert parts["unaccounted"] <= 0.01 * ledger["wall_seconds"], parts
    assert min(parts["bootstrapping"], parts["compile"], parts["productive"]) > 0, parts
    if attempts > 1:
        assert parts["recovering"] > 0, parts
