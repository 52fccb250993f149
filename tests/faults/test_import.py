"""The database is gone in mid-run; what lies in the storage is enough, on a disk or in a bucket."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.gcs import FakeGcs
from tests.faults.harness import ROOT, Plane, plane, processes, tiny_job, until
from tests.faults.outcome import Told, attempts, check_ledger, checkpoints, told_of


@pytest.fixture(params=["disk", "bucket"])
def here(
    request: pytest.FixtureRequest, data_dir: Path, gcs: FakeGcs
) -> Iterator[tuple[Plane, str]]:
    """A service of its own, and its storage."""
    where = str(data_dir / "kept") if request.param == "disk" else f"{gcs.uri}/kept"
    env = gcs.environment | {"LONGHAUL_STORAGE": where}
    with plane(data_dir / "data", **env) as service:
        yield service, where


def longhaul(service: Plane, *words: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = {k: v for k, v in os.environ.items() if not k.startswith("LONGHAUL_")}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", *words, "--data", str(service.data)],
        env=environment | {"PYTHONPATH": str(ROOT)} | dict(service.env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def lose_the_database(service: Plane) -> None:
    service.kill()
    for file in service.data.glob("longhaul.db*"):
        file.unlink()


def test_a_run_goes_on_from_its_storage_as_if_nothing_had_happened(
    here: tuple[Plane, str], text: Path, undisturbed: Callable[[int], Told]
) -> None:
    service, where = here
    run = service.submit(tiny_job("imported", text))
    until(lambda: len(checkpoints(service, run)) >= 2, "two checkpoints")
    lose_the_database(service)
    told = longhaul(service, "import", where)
    assert told.returncode == 0, told.stderr
    assert f"imported ({run})" in told.stdout
    service.up()
    detail = service.get(f"runs/{run}")
    assert (detail["name"], detail["state"]) == ("imported", "paused")
    known = [one["step"] for one in checkpoints(service, run)]
    assert 12 in known, "the acceptance of a newer one may not have been left there yet"
    until(lambda: not processes(service.data, "worker.agent"), "the old agent to be told to leave")
    assert service.call("POST", f"runs/{run}/resume", json={}).status_code == 202
    assert service.finish(run)["state"] == "succeeded"
    expected, seen = undisturbed(1), told_of(service, run)
    assert seen.digest == expected.digest
    assert seen.steps == expected.steps[max(known) :]
    check_ledger(service, run, attempts=1)
    numbers = [one["number"] for one in attempts(service, run)]
    assert numbers == [1, 2], "the old attempt's folder is left to it"
    again = longhaul(service, "import", where)
    assert again.returncode != 0
    assert "A service already works on" in again.stderr
