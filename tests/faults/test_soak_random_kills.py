"""A longer run that is killed again and again, whoever it hits, by seed: `make soak`.

It ends as if nothing had happened: losses, norms, batches, evaluations, and the digest of the last
state (invariants 1, 2, 6, 8, 9, 11, 14 and 16).
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.harness import FINISHED, Plane, plane, processes, tiny_job, until
from tests.faults.outcome import Told, check_outcome, told_of

TRAINER, AGENT, CONTROL_PLANE = "worker.trainer", "worker.agent", "control plane"
PATIENT = {"max_crashes": 1000, "backoff_seconds": 0.1, "max_backoff_seconds": 0.5}


@dataclass(frozen=True)
class Storm:
    steps: int
    kills: int
    victims: tuple[str, ...]


STORMS = {
    "workers": Storm(300, 5, (TRAINER, AGENT)),
    "everybody": Storm(600, 12, (TRAINER, AGENT, CONTROL_PLANE)),
}


def long_job(name: str, text: Path, hosts: int, steps: int) -> dict[str, object]:
    checkpoint = {"every_steps": 25}
    return tiny_job(name, text, steps=steps, hosts=hosts, checkpoint=checkpoint, policy=PATIENT)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Callable[[int, int], Told]:
    """What the run tells that nobody disturbs, by its hosts and steps."""
    known: dict[tuple[int, int], Told] = {}

    def train(hosts: int, steps: int) -> Told:
        if (hosts, steps) not in known:
            with plane(tmp_path_factory.mktemp("calm") / "data") as service:
                run = service.submit(long_job("calm", text, hosts, steps))
                assert service.finish(run, 600)["state"] == "succeeded"
                known[hosts, steps] = told_of(service, run)
        return known[hosts, steps]

    return train


def kill_somebody(service: Plane, victims: tuple[str, ...], dice: random.Random) -> None:
    """The control plane comes back after a while, perhaps to a trainer that is gone."""
    victim = dice.choice(victims)
    if victim == CONTROL_PLANE:
        service.kill()
        if dice.random() < 0.5 and (alive := processes(service.data, TRAINER)):
            os.kill(dice.choice(alive), signal.SIGKILL)
        service.up()
        return
    alive = until(lambda: processes(service.data, victim), f"a {victim} to kill")
    os.kill(dice.choice(alive), signal.SIGKILL)


@pytest.mark.soak
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("name", STORMS)
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_ends_as_if_nothing_had_happened(
    tmp_path: Path, text: Path, calm: Callable[[int, int], Told], seed: int, name: str, hosts: int
):
    storm, dice = STORMS[name], random.Random(seed)
    expected = calm(hosts, storm.steps)
    with plane(tmp_path / "storm") as service:
        run = service.submit(long_job("storm", text, hosts, storm.steps))
        for step in sorted(dice.sample(range(1, storm.steps - 25), storm.kills)):
            until(
                lambda step=step: (
                    service.step(run) >= step or service.get(f"runs/{run}")["state"] in FINISHED
                ),
                f"step {step}",
                seconds=300,
            )
            kill_somebody(service, storm.victims, dice)
        check_outcome(service, run, expected, None, seconds=600)
