"""What ends a training process from outside of its loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest

from tests.fakes.tiny import attempt, tiny_job, write_text
from worker import training
from worker.ends import PeerLost
from worker.protocol import StartTrainer

GLOO = "Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4711"


def order(tmp_path: Path, processes: int) -> StartTrainer:
    job = tiny_job(write_text(tmp_path / "text"), hosts={"count": processes})
    gang = {"process_count": processes, "coordinator": "127.0.0.1:1"}
    return StartTrainer(spec=attempt(job, tmp_path, **gang), rank=0)


def fails_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(training, "_train", fail)


def run(tmp_path: Path, processes: int) -> None:
    nothing: Any = None
    training.run(order(tmp_path, processes), nothing, nothing)


def wrapped() -> Exception:
    outer = RuntimeError("the evaluation failed")
    outer.__cause__ = jax.errors.JaxRuntimeError(GLOO)
    return outer


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError(GLOO), wrapped()])
def test_a_collective_that_fails_in_a_gang_tells_of_a_lost_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fails_with(monkeypatch, error)
    with pytest.raises(PeerLost, match="Connection closed by peer"):
        run(tmp_path, 2)
    with pytest.raises(RuntimeError) as alone:
        run(tmp_path, 1)
    assert alone.value is error


def test_any_other_error_of_a_gang_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(monkeypatch, RuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        run(tmp_path, 2)
