"""SIGKILL at each moment of a save, and again and again between two saves. Real trainers.

What did not come to count is never resumed from, and the run is the same to the last bit
(invariants 2, 6 and 8).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from tests.fakes.trainer_host import TrainerHost
from worker.ends import CheckpointUnusable
from worker.manifest import verify
from worker.protocol import ExitCode, JobSpec, ResumePoint

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compile-cache")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """Saves after steps 4, 8 and 12."""
    return tiny_job(write_text(tmp_path_factory.mktemp("text")), steps=12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, compile_cache: Path, job: JobSpec) -> Recorder:
    """The same run without a fault."""
    folder = tmp_path_factory.mktemp("h")
    with TrainerHost(folder / "host", compile_cache) as host:
        host.start(attempt(job, folder / "runs"))
        assert host.wait() == ExitCode.DONE, host.log
        return host.seen


@pytest.fixture
def host(data_dir: Path, compile_cache: Path) -> Iterator[TrainerHost]:
    with TrainerHost(data_dir / "host0", compile_cache) as host:
        yield host


def die(
    host: TrainerHost,
    moment: str,
    step: int,
    job: JobSpec,
    runs: Path,
    number: int = 1,
    resume: ResumePoint | None = None,
) -> Recorder:
    host.program = ("tests.fakes.dying_trainer", moment, str(step))
    host.start(attempt(job, runs, number, resume=resume))
    assert host.wait() == KILLED, host.log
    host.program = ("worker.trainer",)
    return host.seen


def check_end(whole: Recorder, parts: list[Recorder], resumed_at: int) -> None:
    """The last part went on from `resumed_at` to the end; what was trained again was the same."""
    last = parts[-1]
    assert sorted(last.losses()) == list(range(resumed_at + 1, 13))
    for part in parts:
        assert part.losses().items() <= whole.losses().items()
    hashes = [{e.step: e.batch_hash for e in seen.of("step")} for seen in (last, whole)]
    assert hashes[0].items() <= hashes[1].items()
    ends = [seen.of("checkpoint_written")[-1].state_digest for seen in (whole, last)]
    assert ends[0] == ends[1]


def test_saves_that_were_cut_off_count_nowhere(
    host: TrainerHost, job: JobSpec, whole: Recorder, data_dir: Path
) -> None:
    """One save after the other, each at its own moment, and each time from the step before it."""
    runs, parts, point = data_dir / "runs", [], None
    for number, moment in enumerate(("copy", "write", "marker", "offer"), 1):
        parts.append(die(host, moment, 8, job, runs, number, point))
        point = parts[0].point(4)
        told = [event.step for event in parts[-1].of("checkpoint_written")]
        assert told == ([4] if number == 1 else [])
        left = runs / f"a{number}" / "checkpoints" / "8"
        assert left.is_dir(), "the save had begun"
        assert (left / "COMMITTED").exists() == (moment == "offer")
        assert not (left / "accepted.json").exists()
        if moment != "offer":
            with pytest.raises(CheckpointUnusable):
                verify(left, "0" * 64)
    host.start(attempt(job, runs, 5, resume=point))
    assert host.wait() == ExitCode.DONE, host.log
    check_end(whole, [*parts, host.seen], resumed_at=4)
    assert (runs / "a5" / "checkpoints" / "8" / "accepted.json").exists()


def test_a_kill_before_the_acceptance_leaves_a_whole_checkpoint_that_does_not_count(
    host: TrainerHost, job: JobSpec, whole: Recorder, data_dir: Path
) -> None:
    """Whether to go on from it is the control plane's to say, and either would be right."""
    runs = data_dir / "runs"
    host.accepting = False
    host.start(attempt(job, runs))
    host.until(lambda seen: bool(seen.of("checkpoint_written")))
    host.signal(signal.SIGKILL)
    assert host.wait() == KILLED
    first, host.accepting = host.seen, True
    [written, *_] = first.of("checkpoint_written")
    assert not (Path(written.uri) / "accepted.json").exists()
    for number, (resume, at) in enumerate(
        [(None, 0), (first.point(written.step), written.step)], 2
    ):
        host.start(attempt(job, data_dir / f"runs{number}", number, resume=resume))
        assert host.wait() == ExitCode.DONE, host.log
        check_end(whole, [first, host.seen], resumed_at=at)


def test_a_resume_of_a_resume_of_a_resume_with_no_save_between_the_kills(
    host: TrainerHost, job: JobSpec, whole: Recorder, data_dir: Path
) -> None:
    runs = data_dir / "runs"
    parts = [die(host, "copy", 8, job, runs)]
    point = parts[0].point(4)
    for number, step in ((2, 6), (3, 7)):
        parts.append(die(host, "step", step, job, runs, number, point))
        assert sorted(parts[-1].losses()) == list(range(5, step + 1))
        assert not parts[-1].of("checkpoint_written")
    host.start(attempt(job, runs, 4, resume=point))
    assert host.wait() == ExitCode.DONE, host.log
    check_end(whole, [*parts, host.seen], resumed_at=4)
