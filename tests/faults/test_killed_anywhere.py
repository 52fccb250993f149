"""`kill -9` of the trainer, the agent or the control plane, during start, training and save.

One outcome each: the run succeeds, its history equals an undisturbed run's bit for bit with each
step once, and nothing of it lives on (invariants 1, 2, 5, 6, 8, 11 and 16).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import Plane, plane, processes, tiny_job, until

TRAINER, AGENT = "worker.trainer", "worker.agent"


def at_start(service: Plane, run: str) -> None:
    """The trainer process exists and has not taken a step."""
    until(lambda: processes(service.data, TRAINER), "a trainer to start", every=0.002)
    assert service.step(run) == 0


def while_training(service: Plane, run: str) -> None:
    """Well after the first accepted checkpoint."""
    until(lambda: service.step(run) >= 18, "step 18")


def during_a_save(service: Plane, run: str) -> None:
    """The second checkpoint's files are being written and its marker does not stand yet."""
    saves = service.data / "storage" / "runs" / run / "a1" / "checkpoints"

    def writing() -> bool:
        folders = [path for path in saves.glob("24*") if path.is_dir()]
        return bool(folders) and not (saves / "24" / "COMMITTED").exists()

    until(writing, "the save of step 24", every=0.001)


MOMENTS = {"start": at_start, "training": while_training, "save": during_a_save}


def check_outcome(service: Plane, run: str, expected: list, attempts: set[int]) -> None:
    detail = service.finish(run)
    assert detail["state"] == "succeeded", detail["reason"]
    assert service.history(run) == expected
    told = service.get(f"runs/{run}/attempts")["items"]
    assert len(told) in attempts
    for attempt in told:
        assert attempt["first_difference_step"] is None
        assert attempt["replayed_bit_identical"] is not False
    incidents = service.get(f"runs/{run}/incidents")["items"]
    assert all(one["stopped"] for one in incidents), "every replay came out as it had"
    until(service.released, "every process of the run to be gone")
    check_ledger(service, run, len(told))


def check_ledger(service: Plane, run: str, attempts: int) -> None:
    """Invariant 15: every second is in one category, and at most one in a hundred in none."""
    ledger = service.get(f"runs/{run}/goodput")
    parts = {part["category"]: part["seconds"] for part in ledger["parts"]}
    assert sum(parts.values()) == pytest.approx(ledger["wall_seconds"], abs=1e-5)
    assert parts["unaccounted"] <= 0.01 * ledger["wall_seconds"], parts
    assert min(parts["bootstrapping"], parts["compile"], parts["productive"]) > 0, parts
    if attempts > 1:
        assert parts["recovering"] > 0, parts


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", [TRAINER, AGENT])
def test_a_killed_worker_leaves_no_trace_in_the_history(
    tmp_path: Path, text: Path, undisturbed, victim: str, moment: str
):
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("shot", text))
        MOMENTS[moment](service, run)
        service.kill_one(victim)
        check_outcome(service, run, expected, {2})
        first = service.get(f"runs/{run}/attempts")["items"][0]
        assert first["verdict"] == "crashed"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_control_plane_costs_the_run_nothing(
    tmp_path: Path, text: Path, undisturbed, moment: str
):
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("calmly", text))
        MOMENTS[moment](service, run)
        trainers = processes(service.data, TRAINER)
        service.kill()
        assert processes(service.data, TRAINER) == trainers
        service.up()
        check_outcome(service, run, expected, {1})


def test_a_gang_of_two_fails_and_comes_back_together(tmp_path: Path, text: Path, undisturbed):
    expected = undisturbed(2)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("pair", text, hosts=2))
        while_training(service, run)
        assert len(processes(service.data, TRAINER)) == 2
        service.kill_one(TRAINER)
        check_outcome(service, run, expected, {2})
        [incident] = service.get(f"runs/{run}/incidents")["items"]
        assert incident["closed_by_attempt"] == 2
        assert "SIGKILL" in incident["headline"] + incident["concluded"]


def test_everything_killed_at_once_comes_back(tmp_path: Path, text: Path, undisturbed):
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("storm", text))
        while_training(service, run)
        service.kill()
        service.kill_one(AGENT)
        until(service.released, "the trainer to die with its agent")
        service.up()
        check_outcome(service, run, expected, {2})


def test_a_pause_saves_and_a_resume_goes_on(tmp_path: Path, text: Path, undisturbed):
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        policy = {"hold_seconds": 0.5}
        run = service.submit(tiny_job("rest", text, policy=policy))
        until(lambda: service.step(run) >= 15, "step 15")
        assert service.call("POST", f"runs/{run}/pause").status_code == 202
        until(lambda: service.get(f"runs/{run}")["state"] == "paused", "the pause")
        until(service.released, "the hosts to be given back")
        [attempt] = service.get(f"runs/{run}/attempts")["items"]
        assert attempt["verdict"] == "paused"
        assert attempt["accepted_step"] == attempt["last_step"]
        assert service.call("POST", f"runs/{run}/resume", json={}).status_code == 202
        check_outcome(service, run, expected, {2})
        second = service.get(f"runs/{run}/attempts")["items"][1]
        assert second["replayed_steps"] == 0


def test_a_cancel_ends_every_process_and_keeps_the_checkpoints(tmp_path: Path, text: Path):
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("gone", text))
        while_training(service, run)
        assert service.call("POST", f"runs/{run}/cancel").status_code == 202
        assert service.finish(run)["state"] == "cancelled"
        until(service.released, "every process of the run to be gone")
        [first, *_] = service.get(f"runs/{run}/checkpoints")["items"]
        assert (Path(first["uri"]) / "COMMITTED").exists()
