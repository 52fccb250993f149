"""A longer run that is killed again and again, whoever it hits, by seed: `make soak`.

It ends as if nothing had happened (invariants 1, 2, 6, 8, 11, 14 and 16).
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.harness import FINISHED, Plane, plane, processes, tiny_job, until

KILLS = 12
STEPS = 600
PATIENT = {"max_crashes": 1000, "backoff_seconds": 0.1, "max_backoff_seconds": 0.5}


def long_job(name: str, text: Path, hosts: int) -> dict[str, object]:
    checkpoint = {"every_steps": 25}
    return tiny_job(name, text, steps=STEPS, hosts=hosts, checkpoint=checkpoint, policy=PATIENT)


def kill_somebody(service: Plane, dice: random.Random) -> None:
    """The trainer, the agent or the control plane; the last one comes back after a while."""
    victim = dice.choice(["worker.trainer", "worker.agent", "control plane"])
    if victim != "control plane":
        until(lambda: processes(service.data, victim), f"a {victim} to kill")
        service.kill_one(victim)
        return
    service.kill()
    if dice.random() < 0.5 and processes(service.data, "worker.trainer"):
        service.kill_one("worker.trainer")
    service.up()


@pytest.mark.soak
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_ends_as_if_nothing_had_happened(
    tmp_path: Path, text: Path, seed: int, hosts: int
):
    with plane(tmp_path / "calm") as service:
        calm = service.submit(long_job("calm", text, hosts))
        assert service.finish(calm, 600)["state"] == "succeeded"
        expected = service.history(calm)

    dice = random.Random(seed)
    at = sorted(dice.sample(range(1, STEPS - 25), KILLS))
    with plane(tmp_path / "storm") as service:
        run = service.submit(long_job("storm", text, hosts))
        for step in at:
            until(
                lambda step=step: (
                    service.step(run) >= step or service.get(f"runs/{run}")["state"] in FINISHED
                ),
                f"step {step}",
                seconds=300,
            )
            kill_somebody(service, dice)
        detail = service.finish(run, 600)
        assert detail["state"] == "succeeded", detail["reason"]
        assert service.history(run) == expected
        for attempt in service.get(f"runs/{run}/attempts")["items"]:
            assert attempt["first_difference_step"] is None
        until(service.released, "every process of the run to be gone")
