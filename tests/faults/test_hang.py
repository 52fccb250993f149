"""A trainer that lives and does nothing is found by the age of its step, and the run goes on.

SIGSTOP of one trainer, of one process and of a gang: the verdict is `hung`, it names the process
that was stopped, what every thread did is kept, and the history is that of an undisturbed run
(invariants 6, 8 and 12).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.harness import plane, processes, tiny_job, until
from tests.faults.test_killed_anywhere import check_outcome, while_training

TRAINER = "worker.trainer"
HANG = {"step_seconds": 10, "save_seconds": 20}


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_stopped_trainer_is_found_and_the_run_goes_on(
    tmp_path: Path, text: Path, undisturbed, hosts: int
) -> None:
    expected = undisturbed(hosts)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("stuck", text, hosts=hosts, policy={"hang": HANG}))
        while_training(service, run)
        victim = processes(service.data, TRAINER)[-1]
        os.kill(victim, signal.SIGSTOP)
        check_outcome(service, run, expected, {2})
        first = service.get(f"runs/{run}/attempts")["items"][0]
        assert first["verdict"] == "hung"
        assert "stopped (SIGSTOP)" in first["summary"]
        told = service.get(f"runs/{run}/events?kind=stacks")["items"]
        assert "stopped (SIGSTOP)" in [event["body"]["state"] for event in told]
        until(lambda: not Path(f"/proc/{victim}").exists(), "the stopped trainer to be gone")
