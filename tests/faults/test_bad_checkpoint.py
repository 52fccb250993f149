"""A file of the newest checkpoint goes bad after it was proven, and the trainer dies.

One outcome each: the next attempt refuses it, it is quarantined and its files stay, the one after
goes on from the next older one, and the run ends as an undisturbed one (invariants 6 and 8).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.injected import Fault, inject
from tests.faults.harness import Plane, processes, tiny_job, until
from tests.faults.outcome import Told, attempts, check_outcome, checkpoints, stands_at, verdicts

# A spare would hold the checkpoint as it was before.
ALONE = {"spare_seconds": None, "backoff_seconds": 0.1, "max_backoff_seconds": 0.1}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


SPOILT = {"flipped": flip, "truncated": truncate, "deleted": Path.unlink}


def largest(folder: Path) -> Path:
    """A file with numbers of the arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=_size)


def _size(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("flipped", "has other content"),
        pytest.param("truncated", "bytes", marks=pytest.mark.soak),
        pytest.param("deleted", "is missing", marks=pytest.mark.soak),
    ],
)
def test_a_checkpoint_that_went_bad_is_set_apart_and_the_one_before_is_used(
    service: Plane, text: Path, undisturbed: Callable[[int], Told], how: str, words: str
) -> None:
    expected = undisturbed(1)
    inject(service.python, how, Fault(1, 30, "SIGSTOP"))
    run = service.submit(tiny_job(how, text, policy=ALONE))

    def proven() -> list[dict[str, object]]:
        stopped, saved = stands_at(service, run, 30), checkpoints(service, run)
        return [one for one in saved if stopped and (one["step"], one["state"]) == (24, "verified")]

    [newest] = until(proven, "step 30, and the checkpoint of step 24 to be proven", every=0.3)
    SPOILT[how](largest(Path(str(newest["uri"]))))
    [trainer] = processes(service.data, "worker.trainer")
    os.kill(trainer, signal.SIGKILL)
    check_outcome(service, run, expected, 3)
    assert verdicts(service, run) == ["crashed", "storage_failed", "completed"]
    tried = [one["resume_checkpoint"] for one in attempts(service, run)]
    assert tried == [None, "a1-s24", "a1-s12"]
    [bad] = [one for one in checkpoints(service, run) if one["state"] == "quarantined"]
    assert (bad["id"], bad["attempt"], bad["step"]) == (newest["id"], 1, 24)
    assert words in bad["reason"]
    assert (Path(str(newest["uri"])) / "COMMITTED").exists()
