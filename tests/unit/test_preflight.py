"""What follows from a spec by arithmetic, and what this machine says to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.schemas import Facts
from orchestrator.forecast import Known
from orchestrator.preflight import disk_free, in_bytes, problems
from orchestrator.preflight import facts as facts_of
from orchestrator.settings import Settings
from tests.unit.api_world import tiny_spec
from worker.protocol import JobSpec

PLENTY = 10**12
ANYWHERE = Settings(data_dir=Path("/nowhere"))


def facts(made: JobSpec) -> Facts:
    return facts_of(made, ANYWHERE, Known())


def job(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(tiny_spec(**changes))


def text_job(path: Path, **changes: Any) -> JobSpec:
    return job(data={"source": {"kind": "text", "path": str(path)}, "held_out": 0.1}, **changes)


def pointers(made: JobSpec, settings: Settings, free: int = PLENTY) -> list[str]:
    return [problem.pointer for problem in problems(made, settings, lambda _: free, {"local"})]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.mark.parametrize(("steps", "every", "count"), [(100, 10, 10), (101, 10, 11), (5, 10, 1)])
def test_saves_are_counted_with_the_one_at_the_end(steps: int, every: int, count: int) -> None:
    made = facts(job(steps=steps, checkpoint={"every_steps": every}))
    assert made.checkpoints == count
    assert made.storage_bytes == count * made.checkpoint_bytes == count * 12 * made.parameters


def test_memory_is_told_with_its_arithmetic() -> None:
    made = facts(job())
    assert made.memory_per_device_bytes > 16 * made.parameters
    assert f"{made.parameters:,} parameters" in made.memory_arithmetic
    wider = facts(job(batch={"sequences": 4, "microbatches": 2}))
    assert wider.memory_per_device_bytes < made.memory_per_device_bytes


def test_the_interpreters_own_source_is_enough_for_a_tiny_run(settings: Settings) -> None:
    assert pointers(job(), settings) == []


def test_a_batch_larger_than_the_text_names_both_numbers(
    tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "a.txt").write_text("x" * 256)
    [problem] = problems(text_job(tmp_path), settings, lambda _: PLENTY, {"local"})
    assert problem.pointer == "/data/source/path"
    assert "256 bytes" in problem.detail
    assert "257" in problem.detail
    (tmp_path / "b.md").write_text("x")
    assert pointers(text_job(tmp_path), settings) == []


def test_only_files_with_the_wanted_endings_count(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.bin").write_text("x" * 10_000)
    [problem] = problems(text_job(tmp_path), settings, lambda _: PLENTY, {"local"})
    assert ".txt, .md, .py" in problem.detail
    assert pointers(text_job(tmp_path / "a.bin"), settings) == [], "a file that is named counts"


def test_a_missing_path(tmp_path: Path, settings: Settings) -> None:
    [problem] = problems(text_job(tmp_path / "no"), settings, lambda _: PLENTY, {"local"})
    assert problem.pointer == "/data/source/path"
    assert "does not exist" in problem.detail


def test_an_unreadable_path(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 10_000)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read every file
    [problem] = problems(text_job(path), settings, lambda _: PLENTY, {"local"})
    assert "can not be read" in problem.detail


def test_paths_stay_inside_of_what_is_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.txt").write_text("x" * 10_000)
    (inside / "link").symlink_to(outside)
    settings = Settings(data_dir=tmp_path / "data", allowed_paths=(inside,))
    assert pointers(text_job(inside), settings) == []
    for path in (outside, inside / "link", tmp_path / "in-not", outside / "no"):
        [problem] = problems(text_job(path), settings, lambda _: PLENTY, {"local"})
        assert "outside" in problem.detail


def test_a_full_disk_says_how_much_is_missing_and_what_fits(settings: Settings) -> None:
    made = job(steps=100, checkpoint={"every_steps": 1})
    room = settings.min_free_bytes + 30 * made.checkpoint_bytes
    [problem] = problems(made, settings, lambda _: room, {"local"})
    assert problem.pointer == "/checkpoint/every_steps"
    assert in_bytes(room) in problem.detail
    assert problem.hint
    assert "every_steps 4 or more" in problem.hint
    assert pointers(job(steps=100, checkpoint={"every_steps": 4}), settings, room) == []
    assert pointers(job(steps=100, checkpoint={"every_steps": 3}), settings, room) != []


def test_the_data_folder_needs_room_too(settings: Settings, tmp_path: Path) -> None:
    apart = settings.model_copy(update={"storage": tmp_path / "other"})
    found = problems(job(), apart, lambda path: 0 if path == apart.data_dir else PLENTY, {"local"})
    assert [problem.pointer for problem in found] == [""]


def test_too_many_hosts(settings: Settings) -> None:
    made = job(hosts=17, batch={"sequences": 17})
    assert pointers(made, settings) == ["/hosts/count"]


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert disk_free(tmp_path / "a" / "b") == pytest.approx(disk_free(tmp_path), rel=0.2)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (268_435_456, "268 MB"), (1.2e12, "1.2 TB")],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert in_bytes(count) == words


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    silent = job(data={"held_out": 0}, policy={"max_cost": 5})
    assert [note.split(":")[0] for note in facts(silent).notes] == [
        "data.held_out is 0",
        "policy.max_cost has no effect",
    ]
    assert facts(job()).notes == ()
    priced = Settings(data_dir=tmp_path, prices={"local": 1.0})
    assert facts_of(job(policy={"max_cost": 5}), priced, Known()).notes == ()
