"""A trainer whose control plane is away stops only where its spec says so (invariant 11)."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.fakes.stage import start_trainer
from worker import watches
from worker.protocol import KilledFor, StartTrainer


class QuietTrainer:
    """A trainer that runs and notes what is asked of it."""

    def __init__(self, start: StartTrainer) -> None:
        self.start = start
        self.attempt = start.spec.attempt
        self.ended = asyncio.Event()
        self.asked: list[tuple[float, KilledFor]] = []

    def drain(self, grace_seconds: float, reason: KilledFor) -> None:
        self.asked.append((grace_seconds, reason))


def start_with(dead_man_seconds: float | None) -> StartTrainer:
    start = start_trainer()
    policy = start.spec.job.policy.model_copy(update={"dead_man_seconds": dead_man_seconds})
    job = start.spec.job.model_copy(update={"policy": policy})
    return start.model_copy(update={"spec": start.spec.model_copy(update={"job": job})})


async def watched(limit: float | None, silent: float) -> list[tuple[float, KilledFor]]:
    trainer = QuietTrainer(start_with(limit))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(watches.for_silence(lambda: trainer, lambda: silent), 0.05)
    return trainer.asked


@pytest.mark.parametrize(
    ("limit", "silent", "stopped"), [(60.0, 61.0, True), (60.0, 50.0, False), (None, 1e6, False)]
)
def test_only_a_spec_with_a_dead_man_stops_a_trainer_that_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, limit: float, silent: float, stopped: bool
) -> None:
    monkeypatch.setattr(watches, "WATCH_SECONDS", 0.01)
    asked = asyncio.run(watched(limit, silent))
    assert ((60.0, KilledFor.DEAD_MAN) in asked) is stopped
