"""One run on one or two processes and on one, two or four devices, moved while it trains.

Batch = f(data plan, step), whatever the shape (invariant 9): each batch is that of an undisturbed
run, each sample is seen once. Losses are added up in another order on another shape, so they lie
within `policy.replay_envelope` and not on the same bits (invariant 8). Measured on CPU: up to 5e-4
for steps that another number of devices trained again, and nothing between two devices of one
process and one device of each of two; up to 1e-3 over all 60 steps. The envelope is 1e-2.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.injected import Fault, inject
from tests.faults.harness import Plane, processes, tiny_job, until
from tests.faults.outcome import Told, attempts, check_end, stands_at, told_of
from worker.protocol import JobSpec

TRAINER = "worker.trainer"
ENVELOPE = JobSpec.model_fields["policy"].default.replay_envelope
REPLAY_APART = 1e-3  # of some steps alone, before the differences have grown


@dataclass(frozen=True)
class Move:
    """At `step` the attempt is killed, or else paused, and goes on on another shape."""

    step: int
    killed: bool
    processes: int
    devices: int

    @property
    def shape(self) -> dict[str, int]:
        return {"hosts.count": self.processes, "hosts.devices": self.devices}


FEW = [Move(18, True, 2, 1), Move(30, False, 1, 1)]
MANY = [
    Move(10, False, 1, 2),
    Move(20, True, 2, 1),
    Move(32, True, 1, 4),
    Move(40, False, 2, 2),
    Move(52, True, 1, 1),
]


def stopping(moves: list[Move]) -> list[Fault]:
    """Each process of an attempt that is to be killed stands still once it has told of the step."""
    counts = [1, *(move.processes for move in moves)]
    return [
        Fault(number, move.step, "SIGSTOP", rank=rank)
        for number, (move, count) in enumerate(zip(moves, counts, strict=False), 1)
        for rank in range(count)
        if move.killed
    ]


def resume(service: Plane, run: str, move: Move) -> None:
    answer = service.call("POST", f"runs/{run}/resume", json={"set": move.shape})
    assert answer.status_code == 202, answer.text


def kill(service: Plane, run: str, move: Move) -> None:
    """A new revision, and the attempt that has to make way for it can not save."""
    until(lambda: stands_at(service, run, move.step), f"step {move.step}", every=0.3)
    resume(service, run, move)
    until(lambda: attempts(service, run)[-1]["state"] == "draining", "the wish to arrive")
    for pid in processes(service.data, TRAINER):
        os.kill(pid, signal.SIGKILL)


def pause(service: Plane, run: str, move: Move) -> None:
    until(lambda: service.step(run) >= move.step, f"step {move.step}")
    assert service.call("POST", f"runs/{run}/pause").status_code == 202
    until(lambda: service.get(f"runs/{run}")["state"] == "paused", "the pause")
    resume(service, run, move)


def furthest(seen: Told, expected: Told) -> float:
    """The largest share by which a loss is off."""
    pairs = zip(seen.steps, expected.steps, strict=True)
    return max(abs(now[1] - then[1]) / abs(then[1]) for now, then in pairs)


@pytest.mark.parametrize("moves", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])
def test_a_run_that_moves_to_other_shapes_trains_on_the_same_batches(
    service: Plane, text: Path, undisturbed: Callable[[int], Told], moves: list[Move]
) -> None:
    expected, name = undisturbed(1), f"moves-{len(moves)}"
    inject(service.python, name, *stopping(moves))
    run = service.submit(tiny_job(name, text))
    for move in moves:
        (kill if move.killed else pause)(service, run, move)
    check_end(service, run, len(moves) + 1, seconds=240)
    seen = told_of(service, run)
    assert [point[0] for point in seen.steps] == list(range(1, 61))
    assert seen.hashes == expected.hashes
    assert [step for step, _ in seen.evals] == [step for step, _ in expected.evals]
    apart = furthest(seen, expected)
    assert 0 < apart <= ENVELOPE
    tried = attempts(service, run)
    assert [one["processes"] for one in tried] == [1, *(move.processes for move in moves)]
    for move, before, after in zip(moves, tried, tried[1:], strict=False):
        if move.killed:
            assert after["replayed_steps"] == move.step - after["resumed_from_step"] > 0
            assert after["replayed_bit_identical"] is None, "other bits are no difference"
            assert 0 <= after["replayed_loss_apart"] <= REPLAY_APART
        else:
            assert after["resumed_from_step"] == before["last_step"] >= move.step
            assert after["replayed_loss_apart"] is None
