"""The control plane alone is killed again and again while gangs of two start, train and end.

The gangs never notice: one attempt a run, the history of an undisturbed one, nothing left over
(invariants 1, 3, 5, 11 and 16).
"""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.harness import Plane, plane, processes, tiny_job, until
from tests.faults.outcome import told_of

LONGEST_LIFE_SECONDS = 3.0


def job(name: str, text: Path) -> dict[str, object]:
    return tiny_job(name, text, hosts=2)


def submitted(service: Plane, name: str, text: Path) -> str | None:
    """The run of this name, however often the call that makes it is cut off; None: not now."""
    with contextlib.suppress(httpx.HTTPError, OSError, ValueError):
        answer = service.call(
            "POST", "runs", json=job(name, text), headers={"Idempotency-Key": name}
        )
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["id"]
    return None


def over(service: Plane, run: str) -> bool:
    with contextlib.suppress(httpx.HTTPError, OSError, ValueError):
        detail = service.get(f"runs/{run}")
        assert not detail["needs_person"], detail["reason"]
        return detail["state"] == "succeeded"
    return False


def storm(service: Plane, text: Path, kills: int, dice: random.Random) -> list[str]:
    """Kills the service at `kills` random instants of its life; the runs that were made meanwhile.

    A new run follows as soon as the last one is seen to be over, so that each part of a run's life
    is met. Instants before the service is up count too.
    """
    runs: list[str] = []
    for _ in range(kills):
        death = time.monotonic() + dice.uniform(0.0, LONGEST_LIFE_SECONDS)
        while time.monotonic() < death:
            if not runs or over(service, runs[-1]):
                run = submitted(service, f"storm-{len(runs) + 1}", text)
                runs += [run] if run and run not in runs else []
            time.sleep(0.02)
        service.kill()
        service.spawn()
    until(service.ready, "the service to be ready")
    return runs


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_a_control_plane_killed_at_random_instants_disturbs_no_gang(
    tmp_path: Path, text: Path, undisturbed, kills: int
) -> None:
    expected = undisturbed(2)
    with plane(tmp_path / "data") as service:
        runs = storm(service, text, kills, random.Random(kills))
        assert runs
        for run in runs:
            detail = service.finish(run, 300)
            assert detail["state"] == "succeeded", detail["reason"]
            assert told_of(service, run) == expected
            assert [a["verdict"] for a in service.get(f"runs/{run}/attempts")["items"]] == [
                "completed"
            ]
        assert [found["id"] for found in service.get("runs")["items"]] == runs[::-1]
        until(service.released, "every process of the runs to be gone")
        service.stop()
        assert processes(service.data) == []
