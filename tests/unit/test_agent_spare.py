"""How far a spare trainer gets ready, by device, gang and memory, and whose order it takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes.stage import start_trainer
from worker import memory, spare
from worker.protocol import ResumePoint, StartTrainer
from worker.spare import Level, Spare, level_for

GIB = 1 << 30


def running(
    key: str | None = "cpu x86_64 x1", processes: int = 1, at: str | None = "127.0.0.1:7"
) -> Any:
    spec = SimpleNamespace(process_count=processes, coordinator=at)
    return SimpleNamespace(numerics_key=key, start=SimpleNamespace(spec=spec), pid=1)


@pytest.mark.parametrize(
    ("trainer", "available", "state", "level"),
    [
        (running(), None, 0, None),
        (running(), GIB, 0, None),
        (running(), GIB + (500 << 20), 0, Level.IMPORTS),
        (running(), 2 * GIB, 0, Level.STATE),
        (running(), 4 * GIB, GIB, Level.STATE),
        (running(), 4 * GIB, 2 * GIB, Level.COMPILED),
        (running(processes=2), 64 * GIB, 0, Level.STATE),
        (running(processes=2), 6 * GIB, GIB, Level.COMPILED),
        (running(processes=2, at="10.0.0.7:7"), 6 * GIB, GIB, Level.STATE),
        (running(processes=8), 4 * GIB, 0, Level.IMPORTS),
        (running("NVIDIA H100 x2", processes=2), 64 * GIB, 0, Level.IMPORTS),
        (running("NVIDIA H100 x1"), 64 * GIB, 0, Level.IMPORTS),
        (running("TPU v5 lite x4"), 64 * GIB, 0, Level.IMPORTS),
        (running(None), 64 * GIB, 0, Level.IMPORTS),
    ],
)
def test_a_spare_gets_as_ready_as_the_device_the_gang_and_the_memory_allow(
    monkeypatch: pytest.MonkeyPatch,
    trainer: Any,
    available: int | None,
    state: int,
    level: Level | None,
) -> None:
    monkeypatch.setattr(spare, "resident_bytes", lambda pid: state + spare.OTHER_BYTES)
    assert level_for(trainer, available) is level


def order(attempt: int = 2, rank: int = 0, **changes: Any) -> StartTrainer:
    start = start_trainer(attempt, rank)
    job = start.spec.job.model_copy(update=changes.pop("job", {}))
    spec = start.spec.model_copy(update={"job": job, "storage": f"/runs/r1/a{attempt}"} | changes)
    return start.model_copy(update={"spec": spec})


@pytest.mark.parametrize(
    ("start", "follows"),
    [
        (order(9), True),
        (order(revision=4, resume=ResumePoint(
            checkpoint_id="a1-s4", step=4, uri="/x", manifest_sha256="0" * 64
        )), True),
        (order(rank=1), False),
        (order(job={"seed": 9}), False),
        (order(process_count=2), False),
        (order(storage="/elsewhere/r1/a2"), False),
    ],
)  # fmt: skip
def test_a_spare_takes_only_an_order_that_all_it_has_ready_is_right_for(
    start: StartTrainer, follows: bool
) -> None:
    process = SimpleNamespace(returncode=None, pid=1)
    one = Spare(process, order(1), Level.STATE)  # pyright: ignore
    assert one.follows(start) is follows
    assert one.serves(start) is False, "it is not even connected"


def test_what_is_cached_in_a_cgroup_counts_as_left(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert memory._cgroup_left(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup_left(tmp_path) is None
    assert memory._cgroup_left(tmp_path / "none") is None
