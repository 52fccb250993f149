"""Whole runs whose checkpoints lie in a bucket, while the bucket fails. Real trainers and clients.

Each ends as the undisturbed run on a disk does, to the last bit (invariants 6 and 8).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gcs import FakeGcs, Fault
from tests.faults.harness import TRAINER, Plane, plane, tiny_job, until
from tests.faults.outcome import Told, check_outcome, checkpoints

PATIENT = {"max_unsaved_seconds": 600.0}
LASTING_SECONDS = 120.0


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, cloud_storage: FakeGcs, shared_compile_cache: None
) -> Iterator[Plane]:
    """Its storage is a bucket; its agents and trainers find the fake as it does."""
    env = cloud_storage.environment | {"LONGHAUL_STORAGE": f"{cloud_storage.uri}/faults"}
    with plane(tmp_path_factory.mktemp("cloud") / "data", **env) as here:
        yield here


@pytest.fixture(autouse=True)
def _nothing_left(service: Plane, gcs: FakeGcs) -> Iterator[None]:
    yield
    gcs.faults.clear()
    service.clear()


def told(service: Plane, run: str, kind: str) -> list[dict[str, Any]]:
    return service.get(f"runs/{run}/events?kind={kind}&limit=200")["items"]


def failures(service: Plane, run: str) -> list[str]:
    return [one["body"]["reason"] for one in told(service, run, "save_failed")]


def in_bucket(gcs: FakeGcs, run: str, part: str = "") -> list[str]:
    return [name for name in sorted(gcs.bucket.objects) if f"/{run}/" in name and part in name]


def test_a_killed_trainer_resumes_from_the_bucket_and_old_checkpoints_leave_it(
    service: Plane, gcs: FakeGcs, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    job = tiny_job("bucket-killed", text)
    job["checkpoint"] = {"every_steps": 12, "keep": {"newest": 1}}
    run = service.submit(job)
    until(lambda: len(checkpoints(service, run)) >= 2 and service.step(run) > 30, "two saves")
    service.kill_one(TRAINER)
    check_outcome(service, run, undisturbed(1), attempts=2)
    held = {one["step"]: one for one in checkpoints(service, run)}
    assert all(one["uri"].startswith("gs://") for one in held.values())
    given_up = {step for step, one in held.items() if one["state"] == "deleted"}
    left = {int(name.split("/")[-2]) for name in in_bucket(gcs, run, "/COMMITTED")}
    assert held.keys() - given_up <= left
    assert 12 in given_up - left, "it went when a newer one was verified"
    for attempt in (1, 2):
        assert in_bucket(gcs, run, f"/a{attempt}/logs/agent0-0001.log"), "its host is gone"
    lines = [one["line"] for one in service.get(f"runs/{run}/logs?limit=1000")["items"]]
    assert "agent: attempt 1: trainer ended with -9" in lines


def test_bursts_of_refusals_leave_no_trace(
    service: Plane, gcs: FakeGcs, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    bursts = [
        gcs.faults.add(
            Fault(status=status, times=3, verbs=frozenset({verb}), part=f"/checkpoints/{step}/")
        )
        for step, verb, status in (
            (12, "insert", 503),
            (24, "list", 429),
            (36, "get", 503),
            (60, "insert", 429),
        )
    ]
    run = service.submit(tiny_job("bucket-bursts", text, policy=PATIENT))
    check_outcome(service, run, undisturbed(1), attempts=1)
    assert [burst.met for burst in bursts] == [3, 3, 3, 3]
    assert failures(service, run) == [], "a burst is outlived, not told"


def test_a_lasting_refusal_is_never_silent_and_training_outlives_it(
    service: Plane, gcs: FakeGcs, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    """The upload that hangs is given up, told, and the next one is a fresh one."""
    job = tiny_job("bucket-silent", text, policy=PATIENT)
    job["checkpoint"] = {"every_steps": 12, "save_seconds": 3.0}
    gcs.faults.add(Fault(status=503, part="/12/state/ocdbt.process_0/"))
    run = service.submit(job)
    until(lambda: failures(service, run), "the stuck save to be told")
    assert "not written within 3 s" in failures(service, run)[0]
    gcs.faults.add(Fault(status=503, part=f"/{run}/"))
    until(lambda: "does not answer" in failures(service, run)[-1], "the next one to be told too")
    gcs.faults.clear()
    check_outcome(service, run, undisturbed(1), attempts=1)


@pytest.mark.soak
def test_two_minutes_without_a_bucket(
    service: Plane, gcs: FakeGcs, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    job = tiny_job("bucket-minutes", text, policy=PATIENT)
    job["checkpoint"] = {"every_steps": 12, "save_seconds": 20.0}
    run = service.submit(job)
    until(lambda: checkpoints(service, run), "the first checkpoint")
    gcs.faults.add(Fault(status=503, part=f"/{run}/"))
    lifted = time.monotonic() + LASTING_SECONDS
    until(lambda: failures(service, run), "the failure to be told", seconds=LASTING_SECONDS)
    time.sleep(lifted - time.monotonic())
    gcs.faults.clear()
    check_outcome(service, run, undisturbed(1), attempts=1, seconds=240)


def test_a_lost_permission_pauses_the_run_and_is_named(
    service: Plane, gcs: FakeGcs, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    policy = {"max_failed_saves": 2, "max_crashes": 0}
    run = service.submit(tiny_job("bucket-permission", text, policy=policy))
    until(lambda: checkpoints(service, run), "the first checkpoint")
    gcs.faults.denied = frozenset({"storage.objects.create"})
    paused = service.finish(run)
    assert (paused["state"], paused["needs_person"]) == ("paused", True)
    words = f"the permission storage.objects.create is missing on bucket {gcs.bucket.name}"
    [incident] = service.get(f"runs/{run}/incidents")["items"]
    assert incident["verdict"] == "storage_failed"
    assert words in json.dumps(incident)
    assert words in paused["reason"]
    gcs.faults.clear()
    assert service.call("POST", f"runs/{run}/resume", json={}).status_code == 202
    check_outcome(service, run, undisturbed(1), attempts=2)


def test_a_bucket_that_cannot_be_written_is_refused_before_anything_starts(
    service: Plane, gcs: FakeGcs, text: Path
) -> None:
    gcs.faults.denied = frozenset({"storage.objects.create", "storage.objects.delete"})
    refused = service.call("POST", "runs", json=tiny_job("bucket-refused", text))
    assert refused.status_code == 422
    assert "storage.objects.create, storage.objects.delete are missing" in refused.text
