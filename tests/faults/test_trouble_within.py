"""Trouble that a trainer meets by itself, and stretches without help. Real services and trainers.

NaN, a loss spike, a drift, a reader that never returns, a crash after a rollback, a control plane
that is away, a disk that is full: one outcome each (invariants 6, 8, 9, 10, 11, 12 and 16).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.injected import Fault, inject
from tests.faults.harness import Plane, plane, processes, tiny_job, until
from tests.faults.outcome import (
    Told,
    attempts,
    check_outcome,
    checkpoints,
    stands_at,
    told_of,
    verdicts,
)
from tests.faults.test_killed_anywhere import while_training

TRAINER = "worker.trainer"
SPIKE = {"window": 20, "least": 10, "deviations": 10, "rise": 0.5, "patience": 2}
HANG = {"step_seconds": 5, "save_seconds": 20}
Calm = Callable[[int], Told]


def finished(service: Plane, run: str) -> dict[str, Any]:
    detail = service.finish(run)
    assert detail["state"] == "succeeded", detail["reason"]
    return detail


@pytest.mark.parametrize("fault", ["nan", pytest.param("spike", marks=pytest.mark.soak)])
def test_a_divergence_goes_back_and_never_trains_its_batches_again(
    service: Plane, text: Path, undisturbed: Calm, fault: str
) -> None:
    expected = undisturbed(1)
    inject(service.python, f"wild-{fault}", Fault(1, 30, fault))
    run = service.submit(tiny_job(f"wild-{fault}", text, policy={"spike": SPIKE}))
    detail = finished(service, run)
    assert verdicts(service, run) == ["diverged", "completed"]
    _, second = attempts(service, run)
    assert (second["resumed_from_step"], second["branch"]) == (24, 2)
    assert detail["branch"] == 2
    saved = {one["step"] for one in checkpoints(service, run)}
    assert {12, 24} <= saved
    assert all(step <= 24 for step in saved if step < 36), "nothing was saved of the trouble"
    seen = told_of(service, run)
    assert seen.steps[:24] == expected.steps[:24]
    assert len(set(seen.hashes)) == len(seen.hashes) == 60
    skipped = set(expected.hashes[24:30])
    assert not skipped & set(seen.hashes), "what led to the trouble is passed over"
    assert seen.hashes[24:54] == expected.hashes[30:]


def test_a_replay_that_comes_out_otherwise_is_an_incident_and_stops_nothing(
    service: Plane, text: Path
) -> None:
    """As if memory had gone bad: the state of the second attempt changes a little at step 5."""
    inject(service.python, "drift", Fault(1, 15, "SIGKILL"), Fault(2, 5, "drift"))
    run = service.submit(tiny_job("drift", text, checkpoint={"every_steps": 20}))
    finished(service, run)
    assert verdicts(service, run) == ["crashed", "completed"]
    _, second = attempts(service, run)
    assert (second["resumed_from_step"], second["first_difference_step"]) == (0, 5)
    found = service.get(f"runs/{run}/incidents")["items"]
    [told] = [one for one in found if one["verdict"] == "not_reproduced"]
    assert (told["attempt"], told["stopped"], told["lost_seconds"]) == (2, False, 0)
    assert told["opened_at"] == told["closed_at"] < second["ended_at"]
    assert "step 5 is the first that came out otherwise" in told["concluded"]


def test_a_reader_that_never_returns_is_a_hang_and_says_where(
    service: Plane, text: Path, undisturbed: Calm
) -> None:
    expected = undisturbed(1)
    inject(service.python, "stuck", Fault(1, 30, "stuck reader"))
    run = service.submit(tiny_job("stuck", text, policy={"hang": HANG}))
    check_outcome(service, run, expected, 2)
    assert verdicts(service, run) == ["hung", "completed"]
    [told] = service.get(f"runs/{run}/events?kind=stacks")["items"]
    assert "never_returns" in told["body"]["stacks"]


def test_a_crash_after_a_rollback_and_before_its_next_save(
    service: Plane, text: Path, undisturbed: Calm
) -> None:
    """Nothing newer of the branch that was left comes back."""
    expected = undisturbed(1)
    inject(service.python, "back", Fault(1, 40, "SIGSTOP"), Fault(2, 30, "SIGKILL"))
    run = service.submit(tiny_job("back", text))
    until(lambda: stands_at(service, run, 40), "step 40", every=0.3)
    answer = service.call("POST", f"runs/{run}/rollback", json={"to": "24"})
    assert answer.status_code == 202, answer.text
    check_outcome(service, run, expected, 3)
    assert verdicts(service, run)[1:] == ["crashed", "completed"]
    second, third = attempts(service, run)[1:]
    assert [one["branch"] for one in (second, third)] == [2, 2]
    assert [one["resumed_from_step"] for one in (second, third)] == [24, 24]
    ours = checkpoints(service, run)
    assert {one["branch"] for one in ours if one["step"] > 24 and one["attempt"] > 1} == {2}


@pytest.mark.parametrize(
    "seconds", [pytest.param(0, id="short"), pytest.param(120, id="long", marks=pytest.mark.soak)]
)
def test_a_control_plane_that_is_away_until_all_is_trained_is_told_all_of_it_once(
    tmp_path: Path, text: Path, undisturbed: Calm, seconds: float
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
        check_outcome(service, run, expected, 1)


def test_saves_that_find_no_room_stop_no_training_while_the_policy_bears_it(
    service: Plane, text: Path, undisturbed: Calm
) -> None:
    expected = undisturbed(1)
    inject(service.python, "full", Fault(1, 20, "full disk"))
    run = service.submit(tiny_job("full", text, policy={"max_unsaved_seconds": 600}))
    check_outcome(service, run, expected, 1)
    told = service.get(f"runs/{run}/events?kind=save_failed")["items"]
    assert len(told) == 2
    assert all("the disk is full" in one["body"]["reason"] for one in told)
    saved = {one["step"] for one in checkpoints(service, run)}
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
    tmp_path: Path, text: Path, undisturbed: Calm, small_disk: Path
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
        check_outcome(service, run, expected, 1)
