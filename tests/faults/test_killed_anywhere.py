"""`kill -9` of the trainer, the agent or the control plane, during start, training and save.

One outcome each: the run succeeds, its history equals an undisturbed run's bit for bit with each
step once, and nothing of it lives on (invariants 1, 2, 5, 6, 8, 11 and 16).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import Plane, plane, processes, tiny_job, until
from tests.faults.outcome import Told, attempts, check_outcome, checkpoints, verdicts

TRAINER, AGENT = "worker.trainer", "worker.agent"


def at_start(service: Plane, run: str, attempt: int) -> None:
    """The trainer process exists and has not taken a step."""
    until(lambda: processes(service.data, TRAINER), "a trainer to start", every=0.002)
    assert len(attempts(service, run)) == attempt
    assert attempts(service, run)[-1]["last_step"] is None


def while_training(service: Plane, run: str, attempt: int = 1) -> None:
    """Well after the first accepted checkpoint, and for the first time."""
    until(lambda: service.step(run) >= 18, "step 18")
    assert len(attempts(service, run)) == attempt


def during_a_save(service: Plane, run: str, attempt: int) -> None:
    """The files of a checkpoint are being written and its marker does not stand yet."""
    saves = service.data / "storage" / "runs" / run / f"a{attempt}" / "checkpoints"
    until(lambda: any(_unfinished(saves)), "a save", every=0.001)


def _unfinished(saves: Path) -> list[Path]:
    """Of those that are not the first, so that there is one to go on from."""
    return [
        path
        for path in (saves.iterdir() if saves.exists() else ())
        if path.name.isdigit() and path.name != "12" and not (path / "COMMITTED").exists()
    ]


MOMENTS = {"start": at_start, "training": while_training, "save": during_a_save}


@pytest.mark.parametrize("victim", [TRAINER, AGENT])
def test_a_killed_worker_leaves_no_trace_in_the_history(
    service: Plane, text: Path, undisturbed: Callable[[int], Told], victim: str
) -> None:
    """At each moment, each time in the attempt that follows."""
    expected = undisturbed(1)
    run = service.submit(tiny_job(f"shot-{victim.rpartition('.')[2]}", text))
    for attempt, reached in enumerate(MOMENTS.values(), 1):
        reached(service, run, attempt)
        service.kill_one(victim)
    check_outcome(service, run, expected, 4)
    assert verdicts(service, run) == ["crashed", "crashed", "crashed", "completed"]


@pytest.mark.parametrize(
    "moment", ["start", pytest.param("training", marks=pytest.mark.soak), "save"]
)
def test_a_killed_control_plane_costs_the_run_nothing(
    tmp_path: Path, text: Path, undisturbed: Callable[[int], Told], moment: str
) -> None:
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("calmly", text))
        MOMENTS[moment](service, run, 1)
        trainers = processes(service.data, TRAINER)
        service.kill()
        assert processes(service.data, TRAINER) == trainers
        service.up()
        check_outcome(service, run, expected, 1)


def test_a_gang_of_two_fails_and_comes_back_together(
    service: Plane, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    expected = undisturbed(2)
    run = service.submit(tiny_job("pair", text, hosts=2))
    while_training(service, run)
    assert len(processes(service.data, TRAINER)) == 2
    service.kill_one(TRAINER)
    check_outcome(service, run, expected, 2)
    [incident] = service.get(f"runs/{run}/incidents")["items"]
    assert incident["closed_by_attempt"] == 2
    assert "SIGKILL" in incident["headline"] + incident["concluded"]


def test_everything_killed_at_once_comes_back(
    tmp_path: Path, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("storm", text))
        while_training(service, run)
        service.kill()
        service.kill_one(AGENT)
        until(service.released, "the trainer to die with its agent")
        service.up()
        check_outcome(service, run, expected, 2)


def test_a_pause_saves_and_a_resume_goes_on(
    service: Plane, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    expected = undisturbed(1)
    policy = {"hold_seconds": 0.5}
    run = service.submit(tiny_job("rest", text, policy=policy))
    until(lambda: service.step(run) >= 15, "step 15")
    assert service.call("POST", f"runs/{run}/pause").status_code == 202
    until(lambda: service.get(f"runs/{run}")["state"] == "paused", "the pause")
    until(service.released, "the hosts to be given back")
    [attempt] = attempts(service, run)
    assert attempt["verdict"] == "paused"
    assert attempt["accepted_step"] == attempt["last_step"]
    assert service.call("POST", f"runs/{run}/resume", json={}).status_code == 202
    check_outcome(service, run, expected, 2)
    assert attempts(service, run)[1]["replayed_steps"] == 0


def test_a_cancel_ends_every_process_and_keeps_the_checkpoints(service: Plane, text: Path) -> None:
    run = service.submit(tiny_job("gone", text))
    while_training(service, run)
    assert service.call("POST", f"runs/{run}/cancel").status_code == 202
    assert service.finish(run)["state"] == "cancelled"
    until(service.released, "every process of the run to be gone")
    [first, *_] = checkpoints(service, run)
    assert (Path(first["uri"]) / "COMMITTED").exists()
