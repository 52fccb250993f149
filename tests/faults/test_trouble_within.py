"""Trouble that a trainer meets by itself, and stretches without help. Real services and trainers.

NaN, a loss spike, a drift, a reader that never returns, a crash after a rollback, a control plane
that is away, a disk that is full: one outcome each (invariants 6, 8, 9, 10, 11, 12 and 16).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.injected import python_with
from tests.faults.harness import Plane, plane, processes, tiny_job, until
from tests.faults.test_killed_anywhere import check_outcome, while_training

TRAINER = "worker.trainer"
SPIKE = {"window": 20, "least": 10, "deviations": 10, "rise": 0.5, "patience": 2}
HANG = {"step_seconds": 5, "save_seconds": 20}


def attempts(service: Plane, run: str) -> list[dict[str, Any]]:
    return service.get(f"runs/{run}/attempts")["items"]


def finished(service: Plane, run: str) -> dict[str, Any]:
    detail = service.finish(run)
    assert detail["state"] == "succeeded", detail["reason"]
    return detail


@pytest.mark.parametrize("fault", ["nan", pytest.param("spike", marks=pytest.mark.soak)])
def test_a_divergence_goes_back_and_never_trains_its_batches_again(
    tmp_path: Path, text: Path, undisturbed, fault: str
) -> None:
    expected = undisturbed(1)
    python = python_with(tmp_path / "python", fault, attempt=1, step=30)
    with plane(tmp_path / "data", python) as service:
        run = service.submit(tiny_job("wild", text, policy={"spike": SPIKE}))
        detail = finished(service, run)
        first, second = attempts(service, run)
        assert (first["verdict"], second["verdict"]) == ("diverged", "completed")
        assert (second["resumed_from_step"], second["branch"]) == (24, 2)
        assert detail["branch"] == 2
        saved = {one["step"] for one in service.get(f"runs/{run}/checkpoints")["items"]}
        assert {12, 24} <= saved
        assert all(step <= 24 for step in saved if step < 36), "nothing was saved of the trouble"
        history = service.history(run)
        assert history[:24] == expected[:24]
        hashes = [point[3] for point in history]
        assert len(set(hashes)) == len(hashes) == 60
        skipped = {point[3] for point in expected[24:30]}
        assert not skipped & set(hashes), "what led to the trouble is passed over"
        assert hashes[24:54] == [point[3] for point in expected[30:]]


def test_a_replay_that_comes_out_otherwise_is_an_incident_and_stops_nothing(
    tmp_path: Path, text: Path
) -> None:
    """As if memory had gone bad: the state of the second attempt changes a little at step 5."""
    python = python_with(tmp_path / "python", "drift", attempt=2, step=5)
    with plane(tmp_path / "data", python) as service:
        run = service.submit(tiny_job("drift", text, checkpoint={"every_steps": 40}))
        until(lambda: service.step(run) >= 15, "step 15")
        service.kill_one(TRAINER)
        finished(service, run)
        first, second = attempts(service, run)
        assert (first["verdict"], second["verdict"]) == ("crashed", "completed")
        assert (second["resumed_from_step"], second["first_difference_step"]) == (0, 5)
        found = service.get(f"runs/{run}/incidents")["items"]
        [told] = [one for one in found if one["verdict"] == "not_reproduced"]
        assert (told["attempt"], told["stopped"], told["lost_seconds"]) == (2, False, 0)
        assert told["opened_at"] == told["closed_at"] < second["ended_at"]
        assert "step 5 is the first that came out otherwise" in told["concluded"]


def test_a_reader_that_never_returns_is_a_hang_and_says_where(
    tmp_path: Path, text: Path, undisturbed
) -> None:
    expected = undisturbed(1)
    python = python_with(tmp_path / "python", "stuck reader", attempt=1, step=30)
    with plane(tmp_path / "data", python) as service:
        run = service.submit(tiny_job("stuck", text, policy={"hang": HANG}))
        check_outcome(service, run, expected, {2})
        first, _ = attempts(service, run)
        assert first["verdict"] == "hung"
        [told] = service.get(f"runs/{run}/events?kind=stacks")["items"]
        assert "never_returns" in told["body"]["stacks"]


def test_a_crash_after_a_rollback_and_before_its_next_save(
    tmp_path: Path, text: Path, undisturbed
) -> None:
    """Nothing newer of the branch that was left comes back."""
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("back", text, steps=60))
        until(lambda: service.step(run) >= 40, "step 40")
        answer = service.call("POST", f"runs/{run}/rollback", json={"to": "24"})
        assert answer.status_code == 202, answer.text

        def goes_on() -> bool:
            tried = attempts(service, run)
            return len(tried) > 1 and (tried[-1]["last_step"] or 0) > 24

        until(goes_on, "a step of the new branch", every=0.01)
        service.kill_one(TRAINER)
        check_outcome(service, run, expected, {3})
        second, third = attempts(service, run)[1:]
        assert second["verdict"] == "crashed"
        assert [one["branch"] for one in (second, third)] == [2, 2]
        assert (third["resumed_from_step"] - 24) % 12 == 0
        ours = service.get(f"runs/{run}/checkpoints")["items"]
        assert {one["branch"] for one in ours if one["step"] > 24 and one["attempt"] > 1} == {2}


@pytest.mark.parametrize(
    "seconds", [pytest.param(0, id="short"), pytest.param(120, id="long", marks=pytest.mark.soak)]
)
def test_a_control_plane_that_is_away_until_all_is_trained_is_told_all_of_it_once(
    tmp_path: Path, text: Path, undisturbed, seconds: float
) -> None:
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        run = service.submit(tiny_job("alone", text))
        while_training(service, run)
        service.kill()
        [log] = (service.data / "hosts").glob("*/*/logs/a1-*.log")
        until(lambda: "waiting until a1-s60 is accepted" in log.read_text(), "the last step")
        time.sleep(seconds)
        assert len(processes(service.data, TRAINER)) == 1, "it waits for its last save to count"
        service.up()
        check_outcome(service, run, expected, {1})


@pytest.mark.soak
def test_saves_that_find_no_room_stop_no_training_while_the_policy_bears_it(
    tmp_path: Path, text: Path, undisturbed
) -> None:
    expected = undisturbed(1)
    python = python_with(tmp_path / "python", "full disk", attempt=1, step=20)
    with plane(tmp_path / "data", python) as service:
        run = service.submit(tiny_job("full", text, policy={"max_unsaved_seconds": 600}))
        check_outcome(service, run, expected, {1})
        told = service.get(f"runs/{run}/events?kind=save_failed")["items"]
        assert len(told) == 2
        assert all("the disk is full" in one["body"]["reason"] for one in told)
        saved = {one["step"] for one in service.get(f"runs/{run}/checkpoints")["items"]}
        assert {12, 60} <= saved
        assert not {24, 36} & saved


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data" / "storage"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
@pytest.mark.soak
def test_a_full_disk_stops_no_training_while_the_policy_bears_it(
    tmp_path: Path, text: Path, undisturbed, small_disk: Path
) -> None:
    expected = undisturbed(1)
    with plane(tmp_path / "data") as service:
        policy = {"max_unsaved_seconds": 600}
        run = service.submit(tiny_job("full", text, policy=policy))
        until(lambda: service.step(run) > 0, "training")
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (1 << 20))

        def failed() -> list[dict[str, Any]]:
            return service.get(f"runs/{run}/events?kind=save_failed")["items"]

        [told, *_] = until(failed, "a save to fail", every=0.02)
        assert "the disk is full" in told["body"]["reason"]
        ballast.unlink()
        check_outcome(service, run, expected, {1})
