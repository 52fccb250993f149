"""A trainer that lives and does nothing is found by the age of its step, and the run goes on.

SIGSTOP of one trainer, of one process and of a gang: the verdict is `hung`, it names the process
that was stopped, what every thread did is kept, and the history is that of an undisturbed run
(invariants 6, 8 and 12).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import Plane, processes, tiny_job, until
from tests.faults.outcome import Told, attempts, check_outcome
from tests.faults.test_killed_anywhere import while_training

TRAINER = "worker.trainer"
HANG = {"step_seconds": 10, "save_seconds": 20}


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_stopped_trainer_is_found_and_the_run_goes_on(
    service: Plane, text: Path, undisturbed: Callable[[int], Told], hosts: int
) -> None:
    expected = undisturbed(hosts)
    run = service.submit(tiny_job(f"stuck-{hosts}", text, hosts=hosts, policy={"hang": HANG}))
    while_training(service, run)
    victim = processes(service.data, TRAINER)[-1]
    os.kill(victim, signal.SIGSTOP)
    check_outcome(service, run, expected, 2)
    first = attempts(service, run)[0]
    assert first["verdict"] == "hung"
    assert "stopped (SIGSTOP)" in first["summary"]
    told = service.get(f"runs/{run}/events?kind=stacks")["items"]
    assert "stopped (SIGSTOP)" in [event["body"]["state"] for event in told]
    until(lambda: not Path(f"/proc/{victim}").exists(), "the stopped trainer to be gone")
